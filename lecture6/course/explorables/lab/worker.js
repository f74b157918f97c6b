// The worker of a lab. Its first message brings data and kernel; all others are requests to its
// session.

import { createKernel } from "./kernel.js";
import { Session } from "./session.js";

const { port1, port2 } = new MessageChannel();
let session, next;

port1.onmessage = () => next();

function soon(run) {
  next = run;
  port2.postMessage(null); // a timer would wait for 4 ms
}

self.onmessage = async ({ data: { data, bytes, kernel } }) => {
  const asked = [];
  self.onmessage = (event) => asked.push(event.data);
  try {
    const created = await createKernel(bytes, kernel);
    session = new Session(created, data, (...message) => self.postMessage(...message), soon);
    self.postMessage({ ready: created.kind });
  } catch (error) {
    self.postMessage({ failed: error.message });
    return;
  }
  self.onmessage = (event) => session.receive(event.data);
  asked.forEach((request) => session.receive(request));
};
