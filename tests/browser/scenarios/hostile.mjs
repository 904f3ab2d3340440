// Rows, names, logs, params and metrics that want to be more than text.

export default async function (eyes, given) {
  const start = await eyes.enter();
  let shown = 0;
  const views = await eyes.crawl([start], 4, async (page, url, view) => {
    const { hacked, text, size } = await page.evaluate(() => ({
      hacked: window.hacked ?? null,
      text: document.body.innerText,
      size: document.documentElement.outerHTML.length,
    }));
    eyes.expect(hacked === null, `${url}: a text of the cache was run: ${hacked}`);
    eyes.expect(size < 3e6, `${url}: a page of ${size} letters`);
    if (text.includes("window.hacked")) {
      shown += 1;
      if (shown <= 4) await eyes.look(url, `${given.prefix}${view}`);
    }
  });
  eyes.expect(shown > 2, `the texts are shown on ${shown} pages only`);
  return { shown, views };
}
