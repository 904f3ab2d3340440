// All pages that there are, of a cache that may be in any state: each is a page, and a bad one says what to do.

export default async function (eyes, given) {
  const start = await eyes.enter({ any: true });
  const fixed = ["/", "/pipelines", "/runs", "/artifacts", "/contrast"].map((path) => new URL(path, start).href);
  const seen = {};
  await eyes.crawl([start, ...fixed], 3, async (page, url) => {
    const { status, text } = await page.evaluate(() => ({
      status: performance.getEntriesByType("navigation")[0].responseStatus,
      text: document.querySelector("main")?.innerText ?? "",
    }));
    seen[status] = (seen[status] ?? 0) + 1;
    eyes.expect(text.trim().length > 30, `${url}: status ${status} and nothing to read: ${text}`);
    eyes.expect(!/panicked|bug in/.test(text), `${url}: ${text.slice(0, 300)}`);
    if (status >= 400 && seen[status] === 1) {
      await eyes.picture(page, `${given.prefix}${status}`);
      await eyes.readable(page, `${url} (${status})`);
    }
  }, { any: true });
  return seen;
}
