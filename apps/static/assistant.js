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
    let photos = [];      // {id, url, blob, number, ready, ticked, advice, lost}: lost with the program that had it
    let turns = [];       // {id, question, key, asked, parts: [{photo, text, tier, notices}]} or {id, summary}; kept: an earlier one
    let keeping = null;   // {offered, kept, path, open}
    let waiting = [];     // photos still to be sent
    const sentAgain = {}; // {id: what to do when a lost photo has been sent again}
    let request = null;   // {id, kind, done}
    let count = 0;

    const later = (event, data) => m.send(trigger, event, data);
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
      drawKeeping();
      $("[data-pick]").setAttribute("aria-disabled", String(busy()));
      $("[data-unlock]").setAttribute("aria-disabled", String(busy()));
      $("[data-quick]").hidden = !photos.some((photo) => photo.ready);
      $("[data-log]").hidden = !turns.length;
      const holder = $("[data-placeholder]");
      holder.hidden = Boolean(turns.length);
      holder.textContent = m.t(photos.length ? "assistant.ask_now" : "assistant.nothing_yet");
      $("[data-ask]").setAttribute("aria-disabled", String(busy()));
      element.querySelectorAll("[data-question-key], [data-quick-question]").forEach((button) => button.setAttribute("aria-disabled", String(busy())));
      // What "it" is must have been named before.
      const named = turns.some((one) => !one.kept && one.parts && one.parts.some((part) => part.text && part.tier !== "unknown"));
      element.querySelectorAll("[data-after]").forEach((button) => { button.hidden = !named; });
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

    const titled = (turn) => (turn.quick ? m.t("quick." + turn.quick) : turn.summary ? m.t("summary.pick") : turn.key && !turn.question ? m.t("quick." + turn.key) : turn.question);

    /* Picked sentences, senders, dates: all of it words of the pasted text, shown as text. */
    function drawSummary(reply, found) {
      reply.appendChild(m.el("p", { class: "hint", text: told(found) }));
      const list = m.el("ul", { class: "picked" });
      found.sentences.forEach((text) => list.appendChild(m.el("li", { dir: "auto", text: text })));
      found.senders.forEach((row) => list.appendChild(m.el("li", { dir: "auto" }, [m.el("strong", { text: row[0] + " (" + row[1] + "): " }), m.el("span", { text: row[2] })])));
      reply.appendChild(list);
      if (found.facts.length) reply.appendChild(m.el("p", { dir: "auto", text: m.t("summary.facts") + " " + found.facts.join("; ") }));
      const label = m.t("summary.replies");
      const replies = m.el("div", { class: "quick replies", role: "group", "aria-label": label }, [m.el("span", { class: "hint", text: label })]);
      (found.asks ? ["yes", "no", "later"] : ["thanks", "understood"]).forEach((name) => {
        const text = m.t("reply." + name);
        const button = m.el("button", { type: "button", class: "button small", text: text });
        button.addEventListener("click", async () => {
          m.announce(status, m.t((await m.copy(text)) ? "say.copied" : "say.not_copied"));
        });
        replies.appendChild(button);
      });
      reply.appendChild(replies);
    }
    const told = (found) => m.t("summary." + found.kind, { total: found.total });
    const heard = (found) => [told(found)].concat(found.sentences, found.senders.map((row) => row[0] + " (" + row[1] + "): " + row[2]),
      found.facts.length ? [m.t("summary.facts") + " " + found.facts.join("; ")] : []).join(" ");

    function drawKeeping() {
      const box = $("[data-history]");
      box.hidden = !keeping || !keeping.offered;
      if (box.hidden) return;
      $("[data-history-state]").textContent = m.t(keeping.open ? "history.on" : keeping.kept ? "history.there" : "history.off", { path: keeping.path });
      $("[data-history-form]").hidden = keeping.open;
      $("[data-unlock]").textContent = m.t(keeping.kept ? "history.unlock" : "history.begin");
      $("[data-lock]").hidden = !keeping.open;
      $("[data-burn]").hidden = !keeping.kept;
    }

    function drawTalk() {
      const talk = $("[data-talk]");
      const log = $("[data-log]");
      const below = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
      talk.replaceChildren();
      turns.forEach((turn) => {
        talk.appendChild(m.el("li", { class: "said" }, [
          m.el("span", { class: "who", text: m.t("assistant.you") + (turn.day ? ", " + turn.day : "") }),
          m.el("p", { dir: "auto", text: titled(turn) }),
        ]));
        const reply = m.el("li", { class: "reply" }, [m.el("span", { class: "who", text: m.t("assistant.me") })]);
        if (turn.asked && turn.asked.toLowerCase() !== titled(turn).toLowerCase()) {
          reply.appendChild(m.el("p", { class: "hint", text: m.t("assistant.asked") + " " }, [m.el("span", { lang: "en", dir: "ltr", text: turn.asked })]));
        }
        if (turn.summary) drawSummary(reply, turn.summary);
        (turn.parts || []).forEach((part) => {
          (part.notices || []).forEach((name) => reply.appendChild(m.el("p", { class: "note danger", text: m.t("notice." + name) })));
          const line = m.el("p", {});
          if (turn.many) line.appendChild(m.el("strong", { text: named(part, true) }));
          if (part.tier && part.tier !== "sure") {
            line.appendChild(m.el("span", { class: "tier small", "data-tier": part.tier, text: m.t("tier." + part.tier) }));
          }
          if (part.tier !== "unknown") line.appendChild(m.el("span", { class: "words", lang: "en", dir: "ltr", text: part.text }));
          reply.appendChild(line);
        });
        if (!turn.summary && !turn.parts.length) reply.appendChild(m.el("p", { class: "hint", text: "…" }));
        else if (!request || request.id !== turn.id || request.done) {
          const forget = m.el("button", { type: "button", class: "button quiet small", text: m.t("assistant.forget_turn"),
            "aria-label": m.t("assistant.forget_turn") + ": " + titled(turn) });
          forget.addEventListener("click", () => unturn(turn));
          reply.appendChild(forget);
        }
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
      if (ready.error) { remove(photo); fail(ready.error); next(); return; }
      later("photo", { id: id, photo: photo.id, image: ready.data });
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
      turns.forEach((turn) => { if (turn.parts && !turn.kept) turn.parts = turn.parts.filter((part) => part.number !== photo.number); });
      turns = turns.filter((turn) => turn.summary || turn.kept || turn.parts.length || (busy() && turn.id === request.id));
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

    /* Forget one question with its answer: here, and in what is kept. */
    function unturn(turn) {
      turns = turns.filter((other) => other !== turn);
      trigger("unturn", { turn: turn.id });
      drawTalk();
      m.announce(status, m.t("assistant.turn_forgotten"));
      show();
      $("[data-question]").focus();
    }

    function forget() {
      const burns = Boolean(keeping && keeping.open);
      if (burns && !window.confirm(m.t("history.sure"))) return;
      if (burns) keeping.open = keeping.kept = false;
      trigger("forget", { id: request ? request.id : "" });
      photos.forEach((photo) => URL.revokeObjectURL(photo.url));
      photos = [];
      waiting = [];
      turns = [];
      request = null;
      count = 0;
      $("[data-question]").value = "";
      $("[data-paste]").value = "";
      $("[data-passphrase]").value = "";
      alertBox.textContent = "";
      drawShelf();
      drawTalk();
      element.dataset.phase = "empty";
      m.announce(status, m.t("assistant.forgotten"));
      show();
      $("[data-choose]").focus();
    }

    /* `quick`: a quick question's name; it is shown in the person's language and asked in the model's. */
    function ask(question, key, quick) {
      if (busy()) return;
      const ticked = photos.filter((photo) => photo.ready && photo.ticked);
      if (!ticked.length) { fail(photos.length ? "assistant.none_ticked" : "assistant.no_photo"); return; }
      if (!question && !key) { fail("error.no_question"); $("[data-question]").focus(); return; }
      const id = begin("ask", m.t("say.asking"));
      turns.push({ id: id, question: question, key: key, quick: quick, asked: quick ? question : "", parts: [], many: ticked.length > 1 });
      drawTalk();
      show();
      request.payload = { id: id, question: question, level: key, photos: ticked.map((photo) => photo.id), before: before() };
      send(request.payload);
    }

    /* A question; first, in their order, the photos that the program has no more. */
    async function send(payload) {
      for (const photo of photos.filter((one) => one.lost)) {
        const ready = await m.prepare(photo.blob);
        const id = m.newId();
        const answer = ready.error ? { error: ready.error } : await new Promise((resolve) => {
          sentAgain[id] = resolve;
          later("photo", { id: id, photo: photo.id, image: ready.data });
        });
        delete sentAgain[id];
        if (!request || request.id !== payload.id || request.done) return;
        if (answer.error) { hear(Object.assign({}, answer, { id: payload.id, phase: "error", lost: false })); return; }
        photo.lost = false;
      }
      later("ask", payload);
    }

    /* What a follow-up may point to: the last turn about photos that are still here. */
    function before() {
      const last = turns.slice(0, -1).reverse().find((turn) => turn.parts && turn.parts.length && !turn.kept);
      if (!last) return {};
      return { question: last.asked || last.question, level: last.key, answer: last.parts[last.parts.length - 1].text || "", photos: last.parts.map((part) => part.photo) };
    }

    function pick() {
      if (busy()) return;
      const text = $("[data-paste]").value.trim();
      if (!text) { fail("summary.empty"); $("[data-paste]").focus(); return; }
      later("pick", { id: begin("pick", m.t("summary.reading")), text: text });
    }

    function unlock() {
      if (busy()) return;
      const box = $("[data-passphrase]");
      if (Array.from(box.value.normalize("NFKC")).length < 8) { fail("history.short"); box.focus(); return; }
      const id = begin("unlock", m.t("history.opening"));
      later("unlock", { id: id, passphrase: box.value });
      box.value = "";
    }

    function lock() {
      keeping.open = false;
      turns = turns.filter((turn) => !turn.kept);
      trigger("lock", {});
      drawTalk();
      show();
      m.announce(status, m.t("history.locked"));
      $("[data-passphrase]").focus();
    }

    function burn() {
      if (!window.confirm(m.t("history.sure"))) return;
      keeping.open = keeping.kept = false;
      turns = turns.filter((turn) => !turn.kept);
      trigger("burn", {});
      drawTalk();
      show();
      m.announce(status, m.t("history.burnt"));
      $("[data-passphrase]").focus();
    }

    function finish(sentence) {
      request.done = true;
      element.dataset.phase = "done";
      drawTalk();
      show();
      m.announce(status, sentence);
      next();
    }

    function hear(value) {
      if (value.phase === "history") { keeping = Object.assign({ open: Boolean(keeping && keeping.open) }, value); show(); return; }
      if (sentAgain[value.id]) { if (value.phase === "done" || value.phase === "error") sentAgain[value.id](value); return; }
      if (value.unsent && !busy()) { fail(value.error); return; }
      if (!request || value.id !== request.id) return;
      if (keeping && value.keeping === false) keeping.open = false;
      if (value.phase === "error") {
        if (request.done) return;
        if (value.lost && request.kind === "ask" && !request.again) {
          request.again = true;
          photos.forEach((photo) => { photo.lost = true; });
          send(request.payload);
          return;
        }
        if (value.gone) {
          // The photos stay on the page and are sent again with the next question.
          waiting = [];
          photos.forEach((photo) => { photo.ready = photo.lost = true; });
        }
        if (request.kind === "photo") { if (!value.gone) remove(request.photo); }
        else {
          // What was typed is not lost with the answer.
          const box = $("[data-question]");
          const lost = turns.find((turn) => turn.id === request.id) || {};
          box.value = box.value || (lost.quick ? "" : lost.question) || "";
          turns = turns.filter((turn) => turn.id !== request.id);
          drawTalk();
        }
        if (request.kind === "unlock") $("[data-passphrase]").focus();
        fail(value.error, value.sentence);
        next();
        return;
      }
      if (request.kind === "pick" && value.phase === "done" && !request.done) {
        turns.push({ id: value.id, summary: value.summary });
        $("[data-paste]").value = "";
        finish(heard(value.summary));
        return;
      }
      if (request.kind === "unlock" && value.phase === "done" && !request.done) {
        keeping = { offered: true, kept: true, open: true, path: value.path };
        const earlier = value.turns.map((turn) => Object.assign({}, turn, {
          kept: true, key: turn.level, many: (turn.parts || []).length > 1,
          parts: turn.parts && turn.parts.map((part, index) => Object.assign({ number: index + 1 }, part)),
        }));
        turns = earlier.concat(turns.filter((turn) => !turn.kept));
        finish(m.t("history.opened", { count: earlier.length }));
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
      if (value.about) turn.many = value.about.length > 1 || (photos.length > 1 && "asked" in value);
      if (value.asked) turn.asked = value.asked;
      if (value.key) turn.key = value.key;
      turn.parts = (value.parts || []).map((part) => Object.assign(
        { number: (photos.find((photo) => photo.id === part.photo) || {}).number }, part)).filter((part) => part.number);
      drawTalk();
      if ((value.phase === "done" || value.phase === "stopped") && !request.done) {
        request.done = true;
        element.dataset.phase = value.phase;
        const words = (turn.asked ? m.t("assistant.asked") + " " + turn.asked + " " : "") + turn.parts.map((part) => named(part, turn.many) + frame(part)).join(" ");
        drawTalk();
        m.announce(status, value.phase === "stopped" ? m.t("say.stopped") + " " + words : words);
        next();
      }
      show();
    }
    watch("value", () => hear(props.value || {}));
    m.onRefused(hear);
    m.onLost(() => {
      photos.forEach((photo) => { photo.lost = photo.ready; });
      // The key to what is kept was lost too: nothing more is kept until the passphrase is given again.
      if (keeping) keeping.open = false;
      show();
    });
    m.onBack(() => later("peek", { id: m.newId() }));

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
    element.querySelectorAll("[data-quick-question]").forEach((button) => {
      button.addEventListener("click", () => ask(m.QUICK[button.dataset.quickQuestion], "", button.dataset.quickQuestion));
    });
    $("[data-pick-form]").addEventListener("submit", (event) => { event.preventDefault(); pick(); });
    $("[data-history-form]").addEventListener("submit", (event) => { event.preventDefault(); unlock(); });
    $("[data-lock]").addEventListener("click", lock);
    $("[data-burn]").addEventListener("click", burn);
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
    later("peek", { id: m.newId() });
  };
})();
