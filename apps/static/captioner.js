/* The captioner page. The server sends the whole state of a request each time; this draws it. Nothing that the model
   wrote is ever read as HTML: it goes in through textContent only. */
(function () {
  "use strict";
  const m = window.mmslm;
  if (m.captioner) return;

  m.captioner = function (element, trigger, props, watch) {
    const $ = (selector) => element.querySelector(selector);
    const status = $("[data-status]");
    const alertBox = $("[data-alert]");
    let photo = null;       // {blob, url, sent}: the program has it, as far as we know
    let request = null;     // {id, kind, done, payload}
    let shown = null;       // last finished description
    let answers = [];

    const busy = () => Boolean(request && !request.done);
    const meant = (value) => (value.purpose ? m.t("purpose." + value.purpose) : "");

    function show() {
      element.dataset.photo = photo ? "yes" : "no";
      $("[data-empty]").hidden = Boolean(photo);
      $("[data-full]").hidden = !photo;
      $("[data-describe]").setAttribute("aria-disabled", String(!photo || busy()));
      const halt = $("[data-halt]");
      const hadFocus = document.activeElement === halt;
      halt.hidden = !busy();
      if (hadFocus && halt.hidden) $("[data-describe]").focus();
      $("[data-forget]").hidden = !photo && !shown;
      $("[data-result]").classList.toggle("busy", busy() && request.kind !== "ask");
      const described = Boolean(shown && photo);
      $("[data-actions]").hidden = !described;
      $("[data-follow]").hidden = !described;
      $("[data-placeholder]").hidden = Boolean(shown) || (busy() && Boolean($("[data-caption]").textContent));
      $("[data-placeholder]").textContent = m.t(busy() ? "captioner.looking" : "captioner.nothing_yet");
      $("[data-ask]").setAttribute("aria-disabled", String(busy()));
      $("[data-again]").setAttribute("aria-disabled", String(busy()));
      element.querySelectorAll("[data-quick-question]").forEach((button) => button.setAttribute("aria-disabled", String(busy())));
    }

    /* A file that is no usable photo is not kept on the page either. */
    const UNUSABLE = ["not_an_image", "damaged", "too_large", "too_many_pixels", "no_pixels", "empty"].map((name) => "error." + name);

    function drop() {
      if (photo) URL.revokeObjectURL(photo.url);
      photo = null;
      $("[data-preview]").removeAttribute("src");
      $("[data-preview]").alt = "";
    }

    function fail(key, sentence) {
      const focused = document.activeElement;
      if (UNUSABLE.includes(key)) drop();
      const text = (key && m.t(key)) || sentence || m.t("error.unknown");
      alertBox.textContent = "";
      alertBox.lang = key && m.t(key) ? m.language() : "en";
      // Later than a status (60 ms), so that "looking" is always heard before what went wrong.
      window.setTimeout(() => { alertBox.textContent = text; }, 90);
      if (request) request.done = true;
      status.textContent = "";
      show();
      if (focused && !focused.offsetParent && element.contains(focused)) $("[data-choose]").focus();
    }

    /* Everything that frames the description, in the person's language: [{text, lang}] in the order it is said. */
    function framed(value) {
      const parts = [];
      (value.notices || []).forEach((name) => parts.push({ text: m.t("notice." + name), lang: m.language() }));
      (value.advice || []).forEach((name) => parts.push({ text: m.t("advice." + name), lang: m.language() }));
      if (value.tier === "unknown") parts.push({ text: m.t("tier.unknown"), lang: m.language() });
      else {
        if (value.tier === "unsure") parts.push({ text: m.t("tier.unsure"), lang: m.language() });
        parts.push({ text: value.text, lang: "en" });
      }
      // A purpose that changed something is seen on the page; one that changed nothing is said.
      if (value.purpose === "other") parts.push({ text: meant(value), lang: m.language() });
      return parts;
    }
    const plain = (value) => framed(value).map((part) => part.text).join(" ");

    function drawNotes(value) {
      const box = $("[data-notes]");
      box.replaceChildren();
      (value.notices || []).forEach((name) => {
        box.appendChild(m.el("p", { class: "note danger", text: m.t("notice." + name) }));
      });
      (value.advice || []).forEach((name) => {
        box.appendChild(m.el("p", { class: "note advice", text: m.t("advice." + name) }));
      });
      $("[data-meant]").textContent = meant(value);
      const tier = $("[data-tier]");
      tier.hidden = !value.tier || value.phase !== "done";
      tier.dataset.tier = value.tier || "";
      tier.textContent = value.tier ? m.t("tier." + value.tier) : "";
    }

    function drawCaption(value) {
      const caption = $("[data-caption]");
      caption.classList.toggle("guess", value.tier === "unknown");
      if (value.spans && value.spans.length) {
        caption.replaceChildren();
        value.spans.forEach((span) => {
          if (span[1]) caption.appendChild(m.el("mark", { text: span[0] }));
          else caption.appendChild(document.createTextNode(span[0]));
        });
      } else if (value.tier === "unknown" && value.phase === "done") {
        caption.textContent = "";
      } else caption.textContent = value.text || "";
      const guess = $("[data-guess]");
      guess.hidden = !(value.tier === "unknown" && value.phase === "done" && value.text);
      $("[data-guess-text]").textContent = value.text || "";
      $("[data-agreement]").dataset.agreement = value.agreement || "";
      $("[data-agreement]").textContent = value.agreement ? m.t("again." + value.agreement, value) : "";
      if (photo && value.phase === "done") $("[data-preview]").alt = value.text || m.t("captioner.your_photo");
    }

    function drawAnswers() {
      const list = $("[data-answers]");
      list.replaceChildren();
      answers.forEach((value) => {
        const said = m.el("dd", {});
        (value.notices || []).forEach((name) => said.appendChild(m.el("p", { class: "note danger", text: m.t("notice." + name) })));
        if (value.tier && value.tier !== "sure") {
          said.appendChild(m.el("span", { class: "tier small", "data-tier": value.tier, text: m.t("tier." + value.tier) }));
        }
        if (value.tier !== "unknown") said.appendChild(m.el("span", { lang: "en", dir: "ltr", text: value.text || "…" }));
        const title = value.quick ? m.t("quick." + value.quick) : value.question;
        const asked = value.asked || (value.quick ? value.question : "");
        list.appendChild(m.el("dt", { text: title, dir: "auto" }));
        if (asked && asked.toLowerCase() !== title.toLowerCase()) {
          said.prepend(m.el("p", { class: "hint", text: m.t("assistant.asked") + " " }, [m.el("span", { lang: "en", dir: "ltr", text: asked })]));
        }
        list.appendChild(said);
      });
    }

    function begin(kind) {
      m.voice.hush();
      alertBox.textContent = "";
      $("[data-voice-note]").textContent = "";
      request = { id: m.newId(), kind: kind, done: false, sent: performance.now() };
      element.dataset.phase = "busy";
      m.announce(status, m.t(kind === "ask" ? "say.asking" : kind === "again" ? "say.checking" : "say.looking"));
      return request.id;
    }

    function describe() {
      if (!photo) { fail("error.no_photo"); return; }
      if (busy()) return;
      const level = $("input[type=radio]:checked").value;
      const id = begin("describe");
      shown = null;
      answers = [];
      drawAnswers();
      drawNotes({});
      drawCaption({});
      show();
      send({ id: id, level: level, purpose: $("[data-purpose]").value.trim() });
    }

    /* The request, with the photo where the program has not got it, or has it no more. */
    async function send(payload) {
      request.payload = payload;
      if (!photo.sent) {
        const ready = await m.prepare(photo.blob);
        if (!request || request.id !== payload.id) return;
        if (ready.error) { element.dataset.phase = "error"; fail(ready.error); return; }
        payload.image = ready.data;
      }
      m.send(trigger, request.kind, payload, () => request && request.id === payload.id);
    }

    function follow(event) {
      event.preventDefault();
      const box = $("[data-question]");
      const question = box.value.trim();
      if (busy()) return;
      if (!question) { fail("error.no_question"); box.focus(); return; }
      box.value = "";
      ask(question, "");
    }

    /* `quick`: a quick question's name; it is shown in the person's language and asked in the model's. */
    function ask(question, quick) {
      if (busy()) return;
      const id = begin("ask");
      answers.push({ id: id, question: question, quick: quick, text: "" });
      drawAnswers();
      show();
      send({ id: id, question: question });
    }

    function again() {
      if (!shown || busy()) return;
      // What other looks would be compared with is gone with the program that said it.
      if (!photo.sent) { describe(); return; }
      const id = begin("again");
      show();
      send({ id: id });
    }

    function forget() {
      m.voice.hush();
      const known = photo || shown;
      const last = request ? request.id : "";
      drop();
      shown = null;
      answers = [];
      request = null;
      $("[data-question]").value = "";
      $("[data-purpose]").value = "";
      alertBox.textContent = "";
      $("[data-voice-note]").textContent = "";
      drawAnswers();
      drawNotes({});
      drawCaption({});
      element.dataset.phase = "empty";
      show();
      if (known) {
        trigger("forget", { id: last });
        m.announce(status, m.t("say.forgotten"));
        $("[data-choose]").focus();
      }
    }

    function take(given) {
      if (busy()) trigger("halt", { id: request ? request.id : "" });
      drop();
      request = null;
      photo = given;
      shown = null;
      const preview = $("[data-preview]");
      preview.src = photo.url;
      preview.alt = m.t("captioner.your_photo");
      describe();
    }

    function hear(value) {
      if (value.unsent && !busy()) { fail(value.error); return; }
      if (!request || value.id !== request.id) return;
      if (value.held && photo) photo.sent = true;
      if (value.phase === "error") {
        if (request.done) return;
        if (value.lost && photo && !request.again) {
          request.again = true;
          photo.sent = false;
          if (request.kind === "again") { request.done = true; describe(); } else send(request.payload);
          return;
        }
        element.dataset.phase = "error";
        if (request.kind === "ask") {
          // What was typed is not lost with the answer.
          const box = $("[data-question]");
          const lost = answers.pop();
          if (!lost.quick) box.value = box.value || lost.question;
          drawAnswers();
        }
        fail(value.error, value.sentence);
        return;
      }
      const finished = value.phase === "done" || value.phase === "stopped";
      if (request.kind === "ask") {
        answers[answers.length - 1] = Object.assign({}, answers[answers.length - 1], value);
        drawAnswers();
      } else {
        if (finished) shown = value;
        drawNotes(value);
        drawCaption(value);
      }
      if (finished && !request.done) {
        request.done = true;
        element.dataset.phase = value.phase;
        element.dataset.ms = String(Math.round(performance.now() - request.sent));
        m.announce(status, value.phase === "stopped" ? m.t("say.stopped") + " " + plain(value)
          : (value.agreement ? m.t("again." + value.agreement, value) + " " : "") + plain(value));
      }
      show();
    }
    watch("value", () => hear(props.value || {}));
    m.onRefused(hear);
    m.onLost(() => { if (photo) photo.sent = false; });

    $("[data-describe]").addEventListener("click", describe);
    $("[data-purpose]").addEventListener("keydown", (event) => {
      if (event.key === "Enter") { event.preventDefault(); describe(); }
    });
    $("[data-halt]").addEventListener("click", () => trigger("halt", { id: request ? request.id : "" }));
    $("[data-forget]").addEventListener("click", forget);
    $("[data-again]").addEventListener("click", again);
    $("[data-follow]").addEventListener("submit", follow);
    element.querySelectorAll("[data-quick-question]").forEach((button) => {
      button.addEventListener("click", () => ask(m.QUICK[button.dataset.quickQuestion], button.dataset.quickQuestion));
    });
    $("[data-copy]").addEventListener("click", async () => {
      const done = await m.copy(shown.text);
      m.announce(status, m.t(done ? "say.copied" : "say.not_copied"));
      $("[data-voice-note]").textContent = m.t(done ? "say.copied" : "say.not_copied");
    });
    $("[data-read]").addEventListener("click", () => {
      const button = $("[data-read]");
      const note = $("[data-voice-note]");
      const stop = () => { button.textContent = m.t("captioner.read"); button.dataset.i18n = "captioner.read"; };
      if (button.dataset.i18n === "captioner.hush") { m.voice.hush(); stop(); return; }
      note.textContent = "";
      const parts = framed(shown);
      answers.forEach((value) => parts.push({ text: value.text, lang: "en" }));
      if (m.voice.speak(parts, Number($("[data-rate]").value), stop)) {
        button.textContent = m.t("captioner.hush");
        button.dataset.i18n = "captioner.hush";
      } else {
        note.textContent = m.t("say.no_voice");
        m.announce(status, m.t("say.no_voice"));
      }
    });
    $("[data-rate]").addEventListener("input", (event) => {
      event.target.setAttribute("aria-valuetext", event.target.value + "×");
      $("[data-rate-text]").textContent = event.target.value + "×";
    });
    element.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        m.voice.hush();
        if (busy()) trigger("halt", { id: request ? request.id : "" });
      }
    });
    m.intake(element, take, (key) => fail(key));
    m.onLanguage(() => {
      if (shown) { drawNotes(shown); drawCaption(shown); }
      drawAnswers();
      show();
    });
    m.translate(element);
    element.dataset.phase = "empty";
    show();
    element.dataset.ready = "yes";
  };
})();
