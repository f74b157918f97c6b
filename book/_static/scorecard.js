// The filters of the scorecard. What is chosen is in the address, which can be sent to someone.
// Without this script all rows are there, and no filter.
"use strict";

const form = document.querySelector("form.claims");
const rows = [...document.querySelectorAll("table.claims tr[id]")];
const fields = [...form.querySelectorAll("select")];

function filter() {
  const cited = decodeURIComponent(location.hash.slice(1)); // a claim that someone links to is shown
  const chosen = fields.filter(({ value }) => value);
  for (const row of rows)
    row.hidden = row.id !== cited
      && chosen.some(({ name, value }) => row.dataset[name] !== value);
  for (const body of document.querySelectorAll("table.claims tbody"))
    body.hidden = !body.querySelector("tr[id]:not([hidden])");
  const shown = rows.filter(({ hidden }) => !hidden).length;
  form.querySelector("output").textContent = `${shown} of ${rows.length} claims`;
  const address = new URL(location);
  for (const { name, value } of fields)
    if (value) address.searchParams.set(name, value);
    else address.searchParams.delete(name);
  history.replaceState(null, "", address);
}

const asked = new URLSearchParams(location.search);
for (const field of fields)
  if ([...field.options].some(({ value }) => value === asked.get(field.name)))
    field.value = asked.get(field.name);
form.hidden = false;
form.addEventListener("change", filter);
form.querySelector("button").addEventListener("click", () => {
  for (const field of fields) field.value = "";
  filter();
});
addEventListener("hashchange", filter);
filter();
document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
