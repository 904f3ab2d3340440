// The server ends and is started again at its address with its token: an open page goes on by itself.

import { spawn } from "node:child_process";
import { once } from "node:events";

export default async function (eyes, given) {
  const start = await eyes.enter();
  const page = await eyes.page(start);
  const begins = (word) => document.getElementById("liveness")?.textContent.trim().startsWith(word);
  const says = (word) => page.waitForFunction(begins, word, { timeout: 30000 });
  const begin = (args) => spawn(given.program, args, { cwd: given.cwd, stdio: "ignore" });
  await says("live");
  const before = await page.locator("main").innerText();
  eyes.parting = true;
  process.kill(given.server, "SIGTERM");
  await says("not live");
  const again = begin(given.again);
  try {
    await says("live");
    await once(begin(given.run), "exit");
    const differs = (before) => document.querySelector("main").innerText !== before;
    await page.waitForFunction(differs, before, { timeout: 20000 });
    await eyes.picture(page, `${given.prefix}goes-on`);
  } finally {
    again.kill();
  }
  return { after: await page.locator("main").innerText() };
}
