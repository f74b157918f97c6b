// What the lab is asked for, checked where it comes in: one clear error names what is wrong.

export function fail(message) {
  throw new Error(message);
}

export function whole(name, value, least, most = Number.MAX_SAFE_INTEGER) {
  if (Number.isInteger(value) && value >= least && value <= most) return value;
  fail(`${name} must be a whole number from ${least} to ${most}, got ${value}`);
}

// Bounds: least and most, which the number may reach, above and below, which it may not.
export function real(name, value, { least, most, above, below }) {
  const good = Number.isFinite(value) && !(value < least || value > most || value <= above ||
    value >= below);
  if (good) return value;
  const words = { "≥": least, "≤": most, ">": above, "<": below };
  const bounds = Object.entries(words).filter(([, bound]) => bound !== undefined);
  const wanted = bounds.map((bound) => bound.join(" ")).join(" and ");
  fail(`${name} must be a finite number ${wanted}, got ${value}`);
}

export function oneOf(name, value, known) {
  if (known.includes(value)) return value;
  fail(`${name} must be one of ${known.join(", ")}, got ${value}`);
}

// Numbers, as many as said.
export function vector(name, value, length) {
  if (value?.length !== length)
    fail(`${name} must have ${length} numbers, got ${value?.length ?? value}`);
  const bad = value.findIndex((x) => !Number.isFinite(x));
  if (bad >= 0) fail(`${name} must have finite numbers, got ${value[bad]} at ${bad}`);
  return value;
}

// The options with the defaults in place of what is not given; no others.
export function options(given, defaults) {
  for (const name of Object.keys(given ?? {}))
    if (!(name in defaults))
      fail(`there is no option ${name}: the known ones are ${Object.keys(defaults).join(", ")}`);
  const stated = Object.entries(given ?? {}).filter(([, value]) => value !== undefined);
  return { ...defaults, ...Object.fromEntries(stated) };
}
