// Every view that a link leads to: the first page of each is looked at closely, some more are opened.

export default async function (eyes, given) {
  const start = await eyes.enter();
  return eyes.crawl([start], 2, async (page, url, view, count) => {
    if (count === 1) await eyes.look(url, given.prefix + view);
  });
}
