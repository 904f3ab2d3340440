// Every view that a link leads to: the first page of each is looked at closely, some more are opened.

/** The pictures of the documents: which page each is of. */
const PICTURES = {
  pipeline: (view) => view === "pipeline",
  run: (view) => view === "run",
  contrast: (view, url) => view === "contrast" && url.includes("row="),
};

export default async function (eyes, given) {
  const start = await eyes.enter();
  const wanted = { ...PICTURES };
  const views = await eyes.crawl([start], { most: 2, forms: 6 }, async (page, url, view, count) => {
    if (count === 1) await eyes.look(url, given.prefix + view);
    for (const [name, is] of Object.entries(wanted)) {
      if (!is(view, url)) continue;
      await eyes.picture(page, `documents-${name}`, 900);
      delete wanted[name];
    }
  });
  eyes.expect(Object.keys(wanted).length === 0, `no page is ${Object.keys(wanted)}`);
  return views;
}
