// What htmx leaves to the page: news without jumps, the theme, and messages that can be closed.
"use strict";

(() => {
  // --- live parts: only what changed is exchanged, so that focus, open details and what is typed stay

  const sent = new WeakMap();
  const stale = new Set();

  const partsOf = (root) => [...root.querySelectorAll("[data-part]")];

  // The region's HTML without its parts: while it stays the same, so do the parts' ids and their order.
  function skeleton(root) {
    const copy = root.cloneNode(true);
    for (const part of partsOf(copy)) {
      part.replaceChildren();
      part.className = "";
    }
    return copy.innerHTML;
  }

  function remember(region) {
    sent.set(region, skeleton(region));
    for (const part of partsOf(region)) sent.set(part, part.outerHTML);
  }

  function exchange(region, html) {
    const box = document.createElement("div");
    const template = document.createElement("template");
    template.innerHTML = html;
    box.append(template.content);
    const fresh = skeleton(box);
    if (region.dataset.live !== "some" && sent.get(region) !== fresh) {
      keeping(region, () => {
        region.replaceChildren(...box.childNodes);
        remember(region);
        htmx.process(region);
        region.dispatchEvent(new CustomEvent("exchanged", { bubbles: true }));
      });
      return;
    }
    for (const part of partsOf(box)) {
      const old = document.getElementById(part.id);
      const text = part.outerHTML;
      if (old === null || sent.get(old) === text) continue;
      keeping(old.parentElement, () => {
        old.replaceWith(part);
        sent.set(part, text);
        htmx.process(part);
      });
    }
  }

  const focusables = (root) => [...root.querySelectorAll("a[href], button, input:not([type=hidden]), select, textarea, summary, [tabindex]")];

  // What a field held before anybody touched it.
  function givenValue(field) {
    if (field.tagName !== "SELECT") return field.defaultValue;
    return ([...field.options].find((each) => each.defaultSelected) ?? field.options[0])?.value;
  }

  // Run `change`, then put back what a person had done in `around`: the focus, open details, what was typed.
  function keeping(around, change) {
    const held = document.activeElement;
    const focused = around.contains(held) ? held : null;
    const place = focused ? focusables(around).indexOf(focused) : -1;
    const open = [...around.querySelectorAll("details[open][id]")].map((each) => each.id);
    const typed = [...around.querySelectorAll("input[id], textarea[id], select[id]")]
      .filter((each) => each.type !== "hidden" && each.value !== givenValue(each))
      .map((each) => [each.id, each.value]);
    change();
    for (const id of open) document.getElementById(id)?.setAttribute("open", "");
    for (const [id, value] of typed) {
      const field = document.getElementById(id);
      if (field) field.value = value;
    }
    if (focused && !focused.isConnected) {
      // What has no id is found again by where it was among its like.
      const there = focusables(around)[place];
      const again = (focused.id && document.getElementById(focused.id))
        || (there?.tagName === focused.tagName ? there : document.getElementById("main"));
      again?.focus({ preventScroll: true });
    }
  }

  const SESSION_OVER = "the session is over.";

  function tellFreshness(region, problem) {
    if (problem) stale.add(region);
    else stale.delete(region);
    const line = document.getElementById("fresh");
    if (!line) return;
    if (line.hidden !== (stale.size === 0)) line.hidden = stale.size === 0;
    if (!problem || line.dataset.problem === problem) return;  // said once
    line.dataset.problem = problem;
    line.textContent = `Not up to date: ${problem}`;
    if (problem === SESSION_OVER) line.append(" ", linkToLogin());
  }

  // Not led away from the page: what is typed there stays, and can be sent once there is a session again.
  function linkToLogin() {
    const link = document.createElement("a");
    link.href = `/console/login?next=${encodeURIComponent(location.pathname + location.search)}`;
    link.target = "_blank";
    link.textContent = "Log in again (in a new tab)";
    return link;
  }

  document.addEventListener("htmx:beforeSwap", (event) => {
    const region = event.detail.elt;
    if (!region.dataset || !("live" in region.dataset)) return;
    event.detail.shouldSwap = false;
    const { xhr } = event.detail;
    if (xhr.status >= 400) {
      tellFreshness(region, xhr.status === 401 ? SESSION_OVER : "the last look failed.");
      return;
    }
    tellFreshness(region, null);
    exchange(region, xhr.responseText);
    letTablesScroll();
  });
  for (const name of ["htmx:sendError", "htmx:timeout"]) {
    document.addEventListener(name, (event) => {
      if ("live" in event.detail.elt.dataset) tellFreshness(event.detail.elt, "the API does not answer.");
      else say("The API does not answer; whether it was done is not known.");
    });
  }

  // A hidden tab asks for nothing; when it is looked at again, it looks at once.
  document.addEventListener("htmx:beforeRequest", (event) => {
    if (document.hidden && "live" in event.detail.elt.dataset) event.preventDefault();
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) htmx.trigger(document.body, "changed");
  });

  // --- messages

  function say(sentence) {
    const line = document.createElement("p");
    line.className = "said bad";
    line.setAttribute("role", "alert");
    line.textContent = sentence;
    document.getElementById("said").replaceChildren(line);
  }

  document.addEventListener("click", (event) => {
    if (event.target.closest?.("[data-close]")) document.getElementById("said").replaceChildren();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") document.getElementById("said").replaceChildren();
  });

  // What was asked for is done: the next time is another reason.
  document.addEventListener("htmx:afterRequest", (event) => {
    const { elt, successful } = event.detail;
    if (successful && elt.matches("form[hx-post]")) {
      for (const reason of elt.querySelectorAll("input[name=reason]")) reason.value = "";
    }
  });

  // --- the theme: the system's, unless somebody chose

  function showTheme() {
    const button = document.getElementById("theme");
    if (!button) return;
    button.textContent = isDark() ? "Light theme" : "Dark theme";
    button.hidden = false;
  }

  function isDark() {
    const chosen = document.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  }

  function choose(theme) {
    document.documentElement.dataset.theme = theme;
    document.cookie = `waybill-theme=${theme}; Path=/console; Max-Age=31536000; SameSite=Strict`;
    showTheme();
    document.dispatchEvent(new CustomEvent("theme"));
  }

  // A table that is wider than the screen is moved by the arrow keys, so it takes the focus.
  function letTablesScroll() {
    for (const table of document.querySelectorAll("main table")) {
      if (table.scrollWidth > table.clientWidth) table.tabIndex = 0;
      else table.removeAttribute("tabindex");
    }
  }
  addEventListener("resize", letTablesScroll);

  document.addEventListener("DOMContentLoaded", () => {
    for (const region of document.querySelectorAll("[data-live]")) remember(region);
    letTablesScroll();
    document.getElementById("theme")?.addEventListener("click", () => choose(isDark() ? "light" : "dark"));
    showTheme();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      showTheme();
      document.dispatchEvent(new CustomEvent("theme"));
    });
  });
})();
