// What a person sees of a page, and what is wrong with it for one who cannot see it, has no mouse, or reads on a phone.

import { mkdirSync } from "node:fs";
import { createRequire } from "node:module";

/** A phone's and a desk's window. */
const SIZES = { desk: { width: 1280, height: 900 }, phone: { width: 390, height: 844 } };
/** The rules of WCAG 2.2 up to AA. */
const RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"];
/** Pages can be long; a picture of one is not. */
const MOST_HEIGHT = 5000;
/** So often is Tab pressed at most on one page. */
const MOST_TABS = 60;

export class Eyes {
  faults = [];
  /** The server is about to go: that nothing is there any more is no fault. */
  parting = false;
  #browser;
  #axe;
  #given;
  #cookies;

  /** Opens the browser that `given` names. */
  static async open(given) {
    const require = createRequire(`${given.modules}/`);
    const eyes = new Eyes();
    eyes.#given = given;
    eyes.#axe = require("axe-core").source;
    eyes.#browser = await require("playwright-core").chromium.launch({
      executablePath: given.chromium,
      args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
    });
    mkdirSync(given.screens, { recursive: true });
    return eyes;
  }

  /** Comes in with the address that was printed: later pages bring the cookie that this one is given. */
  async enter(options = {}) {
    const page = await this.page(this.#given.url, options);
    this.#cookies = await page.context().storageState();
    const url = page.url();
    this.expect(!url.includes("token"), `the token stays in the address: ${url}`);
    await page.context().close();
    return url;
  }

  async close() {
    await this.#browser.close();
  }

  fault(text) {
    this.faults.push(text);
  }

  expect(holds, text) {
    if (!holds) this.fault(text);
  }

  /**
   * Opens a page. All that goes wrong in it is a fault: an error or a warning on the console, a request that fails, a
   * request to anywhere else.
   */
  async page(url, { size = "desk", scheme = "light", scripts = true, any = false } = {}) {
    const context = await this.#browser.newContext({
      viewport: SIZES[size],
      colorScheme: scheme,
      javaScriptEnabled: scripts,
      reducedMotion: "reduce",
      isMobile: size === "phone",
      storageState: this.#cookies,
    });
    const page = await context.newPage();
    const here = () => page.url().replace(/[?&]token=[^&#]*/, "");
    page.on("console", (message) => {
      // A file as it is has no icon; browsers ask for one all the same.
      const icon = message.location().url.endsWith("/favicon.ico");
      const status = (any || icon || this.parting) && message.text().startsWith("Failed to load resource");
      if (["error", "warning"].includes(message.type()) && !status) this.fault(`${here()}: console: ${message.text()}`);
    });
    page.on("pageerror", (error) => this.fault(`${here()}: script: ${error}`));
    page.on("dialog", async (dialog) => {
      this.fault(`${here()}: a dialog opened: ${dialog.message()}`);
      await dialog.dismiss();
    });
    page.on("request", (request) => {
      const outside = !request.url().startsWith("data:") && new URL(request.url()).origin !== new URL(url).origin;
      if (outside) this.fault(`${here()}: asks ${request.url()}`);
    });
    await this.go(page, url, { any });
    return page;
  }

  /** Goes to another URL in the same page; `any` status will do, or a good one. */
  async go(page, url, { any = false } = {}) {
    const response = await page.goto(url, { waitUntil: "load", timeout: 30000 });
    const status = response?.status() ?? 200;
    this.expect(any || status < 400, `${url}: status ${status}`);
  }

  /**
   * Follows all links within the site and has pages visited: of each view (a path) `most`, and up to `forms` more that ask for
   * other things in their address. Returns how many pages of each view were visited.
   */
  async crawl(starts, { most, forms: mostForms }, visit, options = {}) {
    const open = [...new Set(starts)];
    const met = new Set(open);
    const forms = new Set();
    const views = {};
    while (open.length > 0) {
      const url = open.shift();
      const { origin, pathname, searchParams } = new URL(url);
      const view = pathname.split("/").filter(Boolean).join("-") || "overview";
      const form = `${view} ${[...new Set(searchParams.keys())].sort()}`;
      const count = views[view] ?? 0;
      if (count >= most && (forms.has(form) || count >= most + mostForms)) continue;
      forms.add(form);
      const page = await this.page(url, options);
      const links = await page.evaluate(() => {
        // A file of a cache as it is: not a page.
        if (document.contentType !== "text/html") return null;
        const links = [...document.querySelectorAll("a[href]:not([download])")];
        // By the attribute, for those in drawings, too.
        return links.map((link) => new URL(link.getAttribute("href"), location.href).href);
      });
      if (links) {
        views[view] = count + 1;
        await visit(page, url, view, count + 1);
      }
      await page.context().close();
      for (const link of (links ?? []).map((link) => link.split("#")[0])) {
        if (new URL(link).origin === origin && !met.has(link)) {
          met.add(link);
          open.push(link);
        }
      }
    }
    return views;
  }

  /** How long the answer of the page took, and how long until it was drawn; milliseconds. */
  async took(page) {
    return page.evaluate(() => {
      const [entry] = performance.getEntriesByType("navigation");
      return { answer: entry.responseEnd - entry.requestStart, drawn: entry.domContentLoadedEventEnd - entry.requestStart };
    });
  }

  /** The fastest of some visits, milliseconds until the answer is there and drawn: other work on the machine only ever adds. */
  async fastest(page, url, visits = 4) {
    let best = Infinity;
    for (let visit = 0; visit < visits && best > 500; visit++) {
      await this.go(page, url);
      best = Math.min(best, (await this.took(page)).drawn);
    }
    return best;
  }

  /** A picture of a page. */
  async picture(page, name, most = MOST_HEIGHT) {
    const height = await page.evaluate(() => document.documentElement.scrollHeight);
    const { width } = page.viewportSize();
    const clip = { x: 0, y: 0, width, height: Math.min(height, most) };
    await page.screenshot({ path: `${this.#given.screens}/${name}.png`, fullPage: true, clip });
  }

  /** Checks that a page can be read by everybody: axe's rules, and that it does not scroll sideways. */
  async readable(page, name) {
    await page.evaluate(this.#axe);
    const found = await page.evaluate(
      (rules) => window.axe.run(document, { runOnly: { type: "tag", values: rules }, resultTypes: ["violations"] }),
      RULES,
    );
    for (const violation of found.violations) {
      const node = violation.nodes[0];
      const why = node.failureSummary.replace(/\s+/g, " ");
      this.fault(`${name}: ${violation.id}: ${violation.help} (${violation.nodes.length} places): ${node.html.slice(0, 160)}: ${why}`);
    }
    const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    this.expect(wide <= 1, `${name}: it scrolls sideways by ${wide} pixels`);
  }

  /** Checks that all that can be used can be reached with Tab, shows that it was, and lets go again. */
  async reachable(page, name) {
    const wanted = await page.evaluate(() => {
      const all = [...document.querySelectorAll("a[href], button, input, select, textarea, summary, [tabindex]")];
      const usable = all.filter((e) => e.tabIndex >= 0 && !e.disabled && e.getClientRects().length > 0 && e.checkVisibility({ visibilityProperty: true }));
      // What shows a hand must be, or stand in, something that can be focused.
      const hand = [...document.querySelectorAll("body *")].filter((e) => getComputedStyle(e).cursor === "pointer");
      const dead = hand.filter((e) => !e.closest("a[href], button, input, select, textarea, summary, label, [tabindex], option"));
      return { count: usable.length, dead: dead.slice(0, 3).map((e) => e.outerHTML.slice(0, 120)) };
    });
    for (const html of wanted.dead) this.fault(`${name}: it can be clicked and not reached: ${html}`);
    await page.evaluate(() => document.activeElement?.blur());
    const reached = new Set();
    for (let tab = 0; tab < Math.min(wanted.count, MOST_TABS); tab++) {
      await page.keyboard.press("Tab");
      const now = await page.evaluate(() => {
        const e = document.activeElement;
        if (!e || e === document.body) return null;
        window.reached ??= new Map();
        if (!window.reached.has(e)) window.reached.set(e, window.reached.size);
        const style = getComputedStyle(e);
        const ring = (style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0) || style.boxShadow !== "none";
        return { number: window.reached.get(e), ring, html: e.outerHTML.slice(0, 120) };
      });
      if (!now) break;
      this.expect(now.ring, `${name}: nothing shows that this has the focus: ${now.html}`);
      reached.add(now.number);
    }
    const most = Math.min(wanted.count, MOST_TABS);
    this.expect(reached.size >= most, `${name}: Tab reaches ${reached.size} of ${most} things that can be used`);
  }

  /** A page in the light, in the dark and on a phone: pictures, and all checks. */
  async look(url, name) {
    const desk = await this.page(url);
    await this.picture(desk, `${name}-light`);
    await this.readable(desk, `${name} in the light`);
    await this.reachable(desk, name);
    await desk.emulateMedia({ colorScheme: "dark" });
    await this.picture(desk, `${name}-dark`);
    await this.readable(desk, `${name} in the dark`);
    await desk.context().close();
    const phone = await this.page(url, { size: "phone" });
    await this.picture(phone, `${name}-phone`);
    await this.readable(phone, `${name} on a phone`);
    await phone.context().close();
    const plain = await this.page(url, { scripts: false });
    const words = (await plain.locator("body").innerText()).trim().length;
    this.expect((await plain.locator("h1").count()) >= 1 && words > 40, `${name}: without scripts there is nothing to read`);
    await plain.context().close();
  }
}
