// Many nodes and many rows: each page is there within a second.

/** Milliseconds. */
const MOST = 1000;

export default async function (eyes, given) {
  const start = await eyes.enter();
  const took = {};
  await eyes.crawl([start], 2, async (page, url, view, count) => {
    const fastest = Math.round(await eyes.fastest(page, url));
    took[view] = Math.max(took[view] ?? 0, fastest);
    eyes.expect(fastest <= MOST, `${url}: it took ${fastest} ms`);
    if (count === 1) await eyes.picture(page, given.prefix + view);
  });
  return took;
}
