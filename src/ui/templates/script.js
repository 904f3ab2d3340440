// What makes pages live. Pages work without it; nothing here draws anything of its own.
//
// The server tells that something changed; the page then asks for itself and takes over what differs of its elements that
// are marked `data-live` and have an id.
"use strict";
(() => {
  const status = document.getElementById("liveness");
  const say = (text, bad) => {
    if (!status) return;
    if (status.textContent !== text) status.textContent = text;
    status.classList.toggle("bad", Boolean(bad));
  };
  let source = null;
  let channel = null;
  let release = null;
  let giveUp = null;
  let listens = false;
  let waiting = null;
  let asking = false;
  let again = false;
  let seen = null;
  let pause = 1000;

  // Takes over what differs, and leaves what is opened, marked or has the focus as it is.
  const take = (text) => {
    const fresh = new DOMParser().parseFromString(text, "text/html");
    for (const old of document.querySelectorAll("[data-live][id]")) {
      const next = fresh.getElementById(old.id);
      if (!next || next.outerHTML === old.dataset.was) continue;
      const was = next.outerHTML;
      if (!old.dataset.was && was === old.outerHTML) {
        old.dataset.was = was;
        continue;
      }
      const opened = new Map([...old.querySelectorAll("details[id]")].map((one) => [one.id, one.open]));
      for (const one of next.querySelectorAll("details[id]")) {
        if (opened.has(one.id)) one.open = opened.get(one.id);
      }
      const focus = old.contains(document.activeElement) ? document.activeElement.id : "";
      const scrolled = new Map([...old.querySelectorAll("[id]")].map((one) => [one.id, [one.scrollLeft, one.scrollTop]]));
      const adopted = document.importNode(next, true);
      adopted.dataset.was = was;
      old.replaceWith(adopted);
      for (const one of adopted.querySelectorAll("[id]")) {
        const [left, top] = scrolled.get(one.id) || [0, 0];
        if (left || top) one.scrollTo(left, top);
      }
      if (focus) document.getElementById(focus)?.focus({ preventScroll: true });
      adopted.dispatchEvent(new CustomEvent("live", { bubbles: true }));
    }
  };

  const refresh = async () => {
    if (!document.querySelector("[data-live]")) return;
    if (asking) {
      again = true;
      return;
    }
    asking = true;
    const began = performance.now();
    try {
      const answer = await fetch(location.href, { headers: { accept: "text/html" }, cache: "no-store" });
      if (answer.ok) {
        take(await answer.text());
        say("live");
      } else if (answer.status === 401) {
        say("sami ui was started again: open the address that it printed", true);
        stop();
      } else {
        say("not live: this page cannot be made any more, reload it to see why", true);
      }
    } catch {
      say("not live: sami ui does not answer", true);
    }
    asking = false;
    if (again) {
      again = false;
      // A page that takes long to make is not asked for all the time.
      setTimeout(refresh, Math.max(300, 4 * (performance.now() - began)));
    }
  };

  const hear = (number) => {
    pause = 1000;
    const changed = seen !== number;
    const first = seen === null;
    seen = number;
    if (changed && !first) refresh();
    else say("live");
  };

  const lost = () => say("not live: sami ui does not answer", true);

  const open = () => {
    source = new EventSource("/live");
    source.addEventListener("change", (event) => {
      channel?.postMessage(event.data);
      hear(event.data);
    });
    source.onerror = () => {
      source.close();
      channel?.postMessage("");
      lost();
      waiting = setTimeout(() => {
        // Whatever was missed meanwhile.
        seen = "";
        open();
      }, pause);
      pause = Math.min(2 * pause, 60000);
    };
  };

  const stop = () => {
    source?.close();
    channel?.close();
    release?.();
    giveUp?.abort();
    source = channel = release = giveUp = null;
    clearTimeout(waiting);
    listens = false;
  };

  // A browser has few connections to a server: of all tabs one listens and tells the others, where browsers can do that.
  const start = () => {
    if (listens || document.hidden || !document.querySelector("[data-live]")) return;
    listens = true;
    if (!navigator.locks || !window.BroadcastChannel) {
      open();
      return;
    }
    channel = new BroadcastChannel("sami-live");
    channel.onmessage = (event) => {
      if (!event.data) {
        lost();
        return;
      }
      seen ??= "";
      hear(event.data);
    };
    giveUp = new AbortController();
    const lead = () =>
      new Promise((done) => {
        release = done;
        open();
      });
    navigator.locks.request("sami-live", { signal: giveUp.signal }, lead).catch(() => {});
    say("live");
  };

  // A tab that is not looked at neither listens nor asks.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      stop();
      return;
    }
    pause = 1000;
    start();
    // Whatever was missed meanwhile; after a day that may be a server that is gone.
    refresh();
  });
  addEventListener("pagehide", stop);
  addEventListener("pageshow", start);
  start();
})();
