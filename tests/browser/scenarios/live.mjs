// A run that goes on: its pages change by themselves, on all tabs, and say so when the server is gone.

import { writeFileSync } from "node:fs";

export default async function (eyes, given) {
  const start = await eyes.enter();
  await eyes.look(start, `${given.prefix}overview`);
  const links = async (page) => page.evaluate(() => [...document.querySelectorAll("main a[href]")].map((a) => a.href));
  const first = await eyes.page(start);
  const pages = [...new Set((await links(first)).map((link) => link.split("#")[0]))].slice(0, 8);
  const tabs = [{ page: first, url: start }];
  for (const url of pages) tabs.push({ page: await eyes.page(url), url });
  for (const tab of tabs) tab.before = await tab.page.locator("main").innerText();
  const running = tabs.filter((tab) => /\brun(s|ning)?\b/i.test(tab.before)).length;
  eyes.expect(running > 0, "no page says that something runs");
  writeFileSync(given.go, "");
  // Nobody touches them: what changed is shown within some seconds.
  await first.waitForFunction((before) => document.querySelector("main").innerText !== before, tabs[0].before, { timeout: 20000 });
  await first.waitForTimeout(2500);
  const after = await first.locator("main").innerText();
  const reloaded = await eyes.page(start);
  const now = await reloaded.locator("main").innerText();
  const plain = (text) => text.replace(/\d+(\.\d+)? (ms|s|m|min)\b( ago)?|just now/g, "T").replace(/\s+/g, " ").trim();
  eyes.expect(plain(after) === plain(now), `what a page has become is not what it is when it is opened:\n${plain(after)}\n--\n${plain(now)}`);
  await eyes.look(start, `${given.prefix}finished`);
  eyes.parting = true;
  process.kill(given.server, "SIGTERM");
  await first.waitForFunction(() => /^not live/.test(document.querySelector("[role=status]")?.innerText.trim() ?? ""), null, { timeout: 20000 });
  const status = await first.locator("[role=status]").first().innerText();
  await eyes.picture(first, `${given.prefix}server-gone`);
  return { tabs: tabs.length, running, status };
}
