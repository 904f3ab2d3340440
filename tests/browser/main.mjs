// Drives a real browser over a page of `sami ui`:
//
//     node main.mjs SCENARIO < given.json
//
// `given` names where the modules and the browser are, where screenshots go, the URL, and what the scenario asks for. The
// last line of the answer is JSON: `faults` (texts; none is good), `seen` (what the scenario measured).

import { Eyes } from "./eyes.mjs";

const scenario = process.argv[2];
let text = "";
for await (const chunk of process.stdin) text += chunk;
const given = JSON.parse(text);

const eyes = await Eyes.open(given);
let seen = {};
try {
  const { default: play } = await import(`./scenarios/${scenario}.mjs`);
  seen = (await play(eyes, given)) ?? {};
} catch (error) {
  eyes.fault(`${scenario}: ${error.stack ?? error}`);
}
await eyes.close();
console.log(JSON.stringify({ faults: eyes.faults, seen }));
