// The engine of a lab, which runs in a worker or in the page: a bundle has it once, as a function,
// whose text the worker runs.

import * as checks from "./checks.js";
import { createKernel, decoded } from "./kernel.js";
import { Shape } from "./network.js";
import { Session } from "./session.js";

// What a page needs of it.
export const parts = { ...checks, Session, Shape, createKernel, decoded };

// Makes a worker of the scope that this runs in. Its first message brings data and kernel; all
// others are requests to its session.
export function serve() {
  const { port1, port2 } = new MessageChannel();
  let session, next;
  port1.onmessage = () => next();
  const soon = (run) => {
    next = run;
    port2.postMessage(null); // a timer would wait for 4 ms
  };
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
}
