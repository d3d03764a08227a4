/* The assistant page: a shelf of photos, and questions about the ticked ones. What the model wrote goes into the page as
   text only, so it can carry no link, no image and no script. */
(function () {
  "use strict";
  const m = window.mmslm;
  if (m.assistant) return;
  const MOST = 4;

  m.assistant = function (element, trigger, props, watch) {
    const $ = (selector) => element.querySelector(selector);
    const status = $("[data-status]");
    const alertBox = $("[data-alert]");
    let photos = [];      // {id, url, number, ready, ticked, advice}
    let turns = [];       // {question, key, parts: [{photo, text, tier, notices}]}
    let waiting = [];     // photos still to be sent
    let request = null;   // {id, kind, done}
    let count = 0;

    const busy = () => Boolean(request && !request.done);

    function frame(part) {
      const words = [];
      (part.notices || []).forEach((name) => words.push(m.t("notice." + name)));
      if (part.tier === "unknown") words.push(m.t("tier.unknown"));
      else {
        if (part.tier === "unsure") words.push(m.t("tier.unsure"));
        words.push(part.text);
      }
      return words.join(" ");
    }
    const named = (part, many) => (many ? m.t("assistant.photo", { number: part.number }) + ": " : "");

    function show() {
      $("[data-result]").classList.toggle("busy", busy());
      $("[data-shelf]").hidden = !photos.length;
      $("[data-forget]").hidden = !photos.length && !turns.length;
      $("[data-quick]").hidden = !photos.some((photo) => photo.ready);
      $("[data-log]").hidden = !turns.length;
      const holder = $("[data-placeholder]");
      holder.hidden = Boolean(turns.length);
      holder.textContent = m.t(photos.length ? "assistant.ask_now" : "assistant.nothing_yet");
      $("[data-ask]").setAttribute("aria-disabled", String(busy()));
      element.querySelectorAll("[data-question-key]").forEach((button) => button.setAttribute("aria-disabled", String(busy())));
      const halt = $("[data-halt]");
      const focused = document.activeElement === halt;
      halt.hidden = !busy() || request.kind !== "ask";
      if (focused && halt.hidden) $("[data-question]").focus();
    }

    function drawShelf() {
      const shelf = $("[data-shelf]");
      shelf.replaceChildren();
      photos.forEach((photo) => {
        const title = m.t("assistant.photo", { number: photo.number });
        const box = m.el("input", { type: "checkbox", id: "assistant-photo-" + photo.id });
        box.checked = photo.ticked;
        box.addEventListener("change", () => { photo.ticked = box.checked; });
        const forget = m.el("button", { type: "button", class: "button quiet small", text: m.t("assistant.forget_photo"),
          "aria-label": m.t("assistant.forget_photo") + ": " + title });
        forget.addEventListener("click", () => drop(photo));
        const item = m.el("li", {}, [
          m.el("label", { for: "assistant-photo-" + photo.id }, [box, m.el("img", { src: photo.url, alt: "" }), m.el("span", { text: title })]),
          forget,
        ]);
        (photo.advice || []).forEach((name) => item.appendChild(m.el("p", { class: "note advice", text: m.t("advice." + name) })));
        shelf.appendChild(item);
      });
    }

    function drawTalk() {
      const talk = $("[data-talk]");
      const log = $("[data-log]");
      const below = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
      talk.replaceChildren();
      turns.forEach((turn) => {
        talk.appendChild(m.el("li", { class: "said" }, [
          m.el("span", { class: "who", text: m.t("assistant.you") }),
          m.el("p", { dir: "auto", text: turn.key ? m.t("quick." + turn.key) : turn.question }),
        ]));
        const reply = m.el("li", { class: "reply" }, [m.el("span", { class: "who", text: m.t("assistant.me") })]);
        turn.parts.forEach((part) => {
          (part.notices || []).forEach((name) => reply.appendChild(m.el("p", { class: "note danger", text: m.t("notice." + name) })));
          const line = m.el("p", {});
          if (turn.many) line.appendChild(m.el("strong", { text: named(part, true) }));
          if (part.tier && part.tier !== "sure") {
            line.appendChild(m.el("span", { class: "tier small", "data-tier": part.tier, text: m.t("tier." + part.tier) }));
          }
          if (part.tier !== "unknown") line.appendChild(m.el("span", { class: "words", lang: "en", dir: "ltr", text: part.text }));
          reply.appendChild(line);
        });
        if (!turn.parts.length) reply.appendChild(m.el("p", { class: "hint", text: "…" }));
        talk.appendChild(reply);
      });
      if (below) log.scrollTop = log.scrollHeight;
    }

    function fail(key, sentence) {
      const text = (key && m.t(key)) || sentence || m.t("error.unknown");
      alertBox.textContent = "";
      // Later than a status (60 ms), so that "looking" is always heard before what went wrong.
      window.setTimeout(() => { alertBox.textContent = text; }, 90);
      if (request) request.done = true;
      status.textContent = "";
      element.dataset.phase = "error";
      show();
    }

    function begin(kind, sentence) {
      alertBox.textContent = "";
      request = { id: m.newId(), kind: kind, done: false };
      element.dataset.phase = "busy";
      m.announce(status, sentence);
      show();
      return request.id;
    }

    async function next() {
      if (busy() || !waiting.length) return;
      const photo = waiting.shift();
      const id = begin("photo", m.t("assistant.adding", { number: photo.number }));
      request.photo = photo;
      const ready = await m.prepare(photo.blob);
      if (!request || request.id !== id) return;
      photo.blob = null;
      if (ready.error) { remove(photo); fail(ready.error); next(); return; }
      trigger("photo", { id: id, photo: photo.id, image: ready.data });
    }

    function take(given) {
      if (photos.length >= MOST) { URL.revokeObjectURL(given.url); fail("assistant.full"); return; }
      count += 1;
      const photo = { id: m.newId(), url: given.url, blob: given.blob, number: count, ready: false, ticked: true };
      photos.push(photo);
      drawShelf();
      show();
      waiting.push(photo);
      next();
    }

    function remove(photo) {
      URL.revokeObjectURL(photo.url);
      photos = photos.filter((other) => other !== photo);
      waiting = waiting.filter((other) => other !== photo);
      turns.forEach((turn) => { turn.parts = turn.parts.filter((part) => part.number !== photo.number); });
      turns = turns.filter((turn) => turn.parts.length || (busy() && turn.id === request.id));
      drawShelf();
      drawTalk();
    }

    /* Forget one photo: the photo, and every answer about it, here and on the server. */
    function drop(photo) {
      if (busy()) trigger("halt", { id: request.id });
      remove(photo);
      trigger("drop", { photo: photo.id });
      m.announce(status, m.t("assistant.dropped", { number: photo.number }));
      element.dataset.phase = "dropped";
      show();
      $("[data-choose]").focus();
    }

    function forget() {
      trigger("forget", { id: request ? request.id : "" });
      photos.forEach((photo) => URL.revokeObjectURL(photo.url));
      photos = [];
      waiting = [];
      turns = [];
      request = null;
      count = 0;
      $("[data-question]").value = "";
      alertBox.textContent = "";
      drawShelf();
      drawTalk();
      element.dataset.phase = "empty";
      m.announce(status, m.t("assistant.forgotten"));
      show();
      $("[data-choose]").focus();
    }

    function ask(question, key) {
      if (busy()) return;
      const ticked = photos.filter((photo) => photo.ready && photo.ticked);
      if (!ticked.length) { fail(photos.length ? "assistant.none_ticked" : "assistant.no_photo"); return; }
      if (!question && !key) { fail("error.no_question"); $("[data-question]").focus(); return; }
      const id = begin("ask", m.t("say.asking"));
      turns.push({ id: id, question: question, key: key, parts: [], many: ticked.length > 1 });
      drawTalk();
      show();
      trigger("ask", { id: id, question: question, level: key, photos: ticked.map((photo) => photo.id) });
    }

    watch("value", () => {
      const value = props.value || {};
      if (!request || value.id !== request.id) return;
      if (value.phase === "error") {
        if (request.kind === "photo") remove(request.photo);
        else { turns = turns.filter((turn) => turn.id !== request.id); drawTalk(); }
        fail(value.error, value.sentence);
        next();
        return;
      }
      if (request.kind === "photo") {
        if (value.phase === "done") {
          request.done = true;
          request.photo.ready = true;
          request.photo.advice = value.advice;
          element.dataset.phase = "done";
          m.announce(status, [m.t("assistant.added", { number: request.photo.number })].concat(
            (value.advice || []).map((name) => m.t("advice." + name))).join(" "));
          drawShelf();
          show();
          next();
        }
        return;
      }
      const turn = turns.find((one) => one.id === value.id);
      if (!turn) return;
      turn.parts = (value.parts || []).map((part) => Object.assign(
        { number: (photos.find((photo) => photo.id === part.photo) || {}).number }, part)).filter((part) => part.number);
      drawTalk();
      if ((value.phase === "done" || value.phase === "stopped") && !request.done) {
        request.done = true;
        element.dataset.phase = value.phase;
        const words = turn.parts.map((part) => named(part, turn.many) + frame(part)).join(" ");
        m.announce(status, value.phase === "stopped" ? m.t("say.stopped") + " " + words : words);
        next();
      }
      show();
    });

    $("[data-form]").addEventListener("submit", (event) => {
      event.preventDefault();
      const box = $("[data-question]");
      const question = box.value.trim();
      if (!busy() && question && photos.some((photo) => photo.ready && photo.ticked)) box.value = "";
      ask(question, "");
    });
    element.querySelectorAll("[data-question-key]").forEach((button) => {
      button.addEventListener("click", () => ask("", button.dataset.questionKey));
    });
    $("[data-halt]").addEventListener("click", () => trigger("halt", { id: request ? request.id : "" }));
    $("[data-forget]").addEventListener("click", forget);
    element.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && busy()) trigger("halt", { id: request.id });
    });
    m.intake(element, take, (key) => fail(key));
    m.onLanguage(() => { drawShelf(); drawTalk(); show(); });
    m.translate(element);
    element.dataset.phase = "empty";
    show();
    element.dataset.ready = "yes";
  };
})();
