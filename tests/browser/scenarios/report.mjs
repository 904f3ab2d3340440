// A report that was sent to somebody: one file, which asks for nothing, is read and printed.

export default async function (eyes, given) {
  await eyes.look(given.url, given.prefix);
  const page = await eyes.page(given.url);
  await page.emulateMedia({ media: "print" });
  await eyes.picture(page, `${given.prefix}-printed`);
  await eyes.readable(page, "the printed report");
  const pdf = await page.pdf({ format: "A4" });
  return { pages: pdf.toString("latin1").match(/\/Type\s*\/Page\b/g).length, bytes: pdf.length };
}
