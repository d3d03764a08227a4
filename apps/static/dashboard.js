/* The privacy page's controls. The server writes the report itself, escaped, into the component below. */
(function () {
  "use strict";
  const m = window.mmslm;
  if (m.dashboard) return;
  const MAX_BYTES = 10 * 1024 * 1024;
  const EVERY = 5000;

  m.dashboard = function (element, trigger, props, watch) {
    const $ = (selector) => element.querySelector(selector);
    const status = $("[data-status]");
    const alertBox = $("[data-alert]");
    let request = null;
    let last = null;       // what is shown: {where} or {name, text}
    let running = false;   // what is shown still goes on
    let clock = null;

    const busy = () => Boolean(request && !request.done);

    function show() {
      $("[data-result]").classList.toggle("busy", busy());
      $("[data-exports]").hidden = !last;
      $("[data-export]").hidden = !last || element.dataset.single !== "yes";
    }

    function fail(key, sentence) {
      if (request) request.done = true;
      const text = sentence || m.t(key) || m.t("error.unknown");
      alertBox.textContent = "";
      window.setTimeout(() => { alertBox.textContent = text; }, 30);
      status.textContent = "";
      element.dataset.phase = "error";
      show();
    }

    function send(event, data, quiet) {
      alertBox.textContent = "";
      request = { id: m.newId(), done: false, quiet: quiet, asked: data };
      element.dataset.phase = "busy";
      if (!quiet) m.announce(status, m.t("privacy.reading"));
      show();
      const payload = Object.assign({ id: request.id, language: m.language() }, data);
      m.send(trigger, event, payload);
    }

    const open = (data, quiet) => { if (!busy()) send("open", data, quiet); };

    async function read(file) {
      if (!file) return;
      if (file.size > MAX_BYTES) { fail("privacy.too_large"); return; }
      open({ name: file.name, text: await file.text() }, false);
    }

    /* A folder: only what a report and its checks need travels, as text. given: [{place, file}]. */
    const NEEDED = ["report.json", "ledger.jsonl", "ledger.jsonl.head", "config.yaml", "metrics.json"];
    async function readAll(given) {
      const wanted = given.filter((one) => NEEDED.includes(one.place.split("/").pop())).slice(0, 60);
      if (!wanted.some((one) => /(^|\/)(report\.json|ledger\.jsonl)$/.test(one.place))) { fail("privacy.no_report"); return; }
      if (wanted.reduce((sum, one) => sum + one.file.size, 0) > MAX_BYTES) { fail("privacy.too_large"); return; }
      const files = [];
      for (const one of wanted) files.push({ place: one.place, text: await one.file.text() });
      open({ files: files }, false);
    }

    /* The files under a dropped folder, three folders deep. */
    async function walk(entry, depth) {
      if (entry.isFile) {
        const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
        return [{ place: entry.fullPath.replace(/^\//, ""), file: file }];
      }
      if (depth > 3) return [];
      const reader = entry.createReader();
      const found = [];
      for (;;) {
        const part = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
        if (!part.length) break;
        for (const child of part) found.push(...(await walk(child, depth + 1)));
        if (found.length > 2000) break;
      }
      return found;
    }

    async function dropped(transfer) {
      const entries = Array.from(transfer.items || []).map((item) => (item.webkitGetAsEntry ? item.webkitGetAsEntry() : null)).filter(Boolean);
      const files = Array.from(transfer.files);
      if (!entries.some((entry) => entry.isDirectory)) {
        if (files.length > 1) await readAll(files.map((file) => ({ place: file.name, file: file })));
        else await read(files[0]);
        return;
      }
      const found = [];
      for (const entry of entries) found.push(...(await walk(entry, 0)));
      await readAll(found);
    }

    function list(found) {
      const box = $("[data-found]");
      box.replaceChildren();
      found.forEach((path) => {
        const button = m.el("button", { type: "button", class: "button small", text: path, dir: "ltr" });
        button.addEventListener("click", () => open({ where: path }, false));
        box.appendChild(m.el("li", {}, [button]));
      });
      $("[data-found-box]").hidden = !found.length;
    }

    function hear(value) {
      if (value.phase === "found") { list(value.found); return; }
      if (value.unsent) return;
      if (!request || value.id !== request.id || request.done) return;
      if (value.phase === "error") { fail(value.error, value.sentence); return; }
      request.done = true;
      if (value.phase === "export") {
        const url = URL.createObjectURL(new Blob([value.page], { type: "text/html" }));
        const link = m.el("a", { href: url, download: value.name });
        link.click();
        window.setTimeout(() => URL.revokeObjectURL(url), 1000);
        m.announce(status, m.t("privacy.exported"));
        element.dataset.phase = "done";
      } else if (value.phase === "done") {
        last = request.asked;
        element.dataset.single = value.single ? "yes" : "no";
        element.dataset.phase = "done";
        if (!request.quiet) m.announce(status, value.summary);
        window.clearTimeout(clock);
        running = value.running;
        if (running) clock = window.setTimeout(() => { if (element.offsetParent) open(last, true); }, EVERY);
      }
      show();
    }
    watch("value", () => hear(props.value || {}));
    m.onRefused(hear);
    m.onBack(() => {
      m.send(trigger, "list", { id: m.newId() });
      if (last && running) open(last, true);
    });

    $("[data-form]").addEventListener("submit", (event) => {
      event.preventDefault();
      const path = $("[data-path]").value.trim();
      if (path) open({ where: path }, false);
      else fail("privacy.no_path");
    });
    $("[data-choose]").addEventListener("click", () => $("[data-file]").click());
    $("[data-file]").addEventListener("change", (event) => {
      read(event.target.files[0]);
      event.target.value = "";
    });
    const drop = $("[data-drop]");
    ["dragenter", "dragover"].forEach((name) => drop.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.add("over");
    }));
    ["dragleave", "drop"].forEach((name) => drop.addEventListener(name, () => drop.classList.remove("over")));
    drop.addEventListener("drop", (event) => {
      event.preventDefault();
      dropped(event.dataTransfer).catch(() => fail("privacy.unreadable"));
    });
    $("[data-choose-folder]").addEventListener("click", () => $("[data-folder]").click());
    $("[data-folder]").addEventListener("change", (event) => {
      readAll(Array.from(event.target.files).map((file) => ({ place: file.webkitRelativePath || file.name, file: file })));
      event.target.value = "";
    });
    $("[data-export]").addEventListener("click", () => { if (last && !busy()) send("export", last, true); });
    $("[data-print]").addEventListener("click", () => window.print());
    $("[data-refresh]").addEventListener("click", () => { if (last) open(last, false); });
    // Paper unfolds nothing: what is folded is opened for the print, and folded again after it.
    const folded = () => document.querySelectorAll("#report-body details:not([open])");
    let unfolded = [];
    window.addEventListener("beforeprint", () => { unfolded = Array.from(folded()); unfolded.forEach((one) => { one.open = true; }); });
    window.addEventListener("afterprint", () => { unfolded.forEach((one) => { one.open = false; }); unfolded = []; });
    m.onLanguage(() => { if (last) open(last, true); });
    m.translate(element);
    element.dataset.phase = "empty";
    show();
    element.dataset.ready = "yes";
    // What is found here, and the accountants, are only loaded for who looks at this page.
    const seen = new IntersectionObserver((entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      seen.disconnect();
      m.send(trigger, "list", { id: m.newId() });
    });
    seen.observe(element);
  };
})();
