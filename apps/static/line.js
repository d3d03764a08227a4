/* The line to the program: whoever waits for an answer hears when none can come, and the page works again, as it is, when
   the program is back. Left alone, Gradio would leave a page busy for ever when the program dies in mid-stream, and then
   load it anew: photo, answers and typed words gone. So no break ever reaches it: a broken stream is ended as the program
   would have ended it, with an error as the last state of every request on it. The heartbeat, by which a program knows that
   a page was closed and forgets what it gave, is taken up with every new program; until then Gradio's own serves (two for
   one page would soon use up the connections that a browser opens to one address). A program that came back with other pages is no longer this page's:
   only then is it loaded anew. */
(function () {
  "use strict";
  if (window.mmslmLine) return;
  const ask = window.fetch.bind(window);
  const EVERY = 2000;     // ms between two questions whether the program is there, while somebody waits
  const PATIENCE = 3000;  // ms for its answer; MISSES of them missed, and it is taken for gone
  const MISSES = 2;
  const GONE = "error.gone";
  const refused = [];     // (value) => ...: the last state of a request that was turned away, or never got an answer
  const lost = [];        // () => ...: the program and all that it held are gone
  const back = [];        // () => ...: a program answers again
  const waiting = {};     // requests without an answer: {event_id: {id, outputs}}
  const unsent = [];      // what was to be forgotten while nobody heard it: said again, first of all
  const early = new Set();  // answered before we knew that they were asked
  const left = new Set(); // ids of requests that left the page
  let here = true;
  let program = "";       // which start of the program this page talks to
  let session = "";
  let beating = false;
  let joining = 0;        // requests on their way to the program
  let missed = 0;
  let open = [];          // AbortControllers of what is open

  const tell = (list, value) => list.forEach((listener) => listener(value));
  const root = () => String((window.gradio_config || {}).root || window.location.origin).replace(/\/+$/, "");
  const wired = (config) => JSON.stringify([config.version, (config.dependencies || []).map((one) => [one.id, one.targets])]);

  function gone() {
    if (!here) return;
    here = false;
    open.forEach((one) => one.abort());
    open = [];
    tell(lost);
    tryAgain();
  }

  /* Until a program answers with the same pages. */
  async function tryAgain() {
    for (;;) {
      await new Promise((ready) => window.setTimeout(ready, 1000));
      try {
        const answer = await ask(root() + "/config", { signal: AbortSignal.timeout(PATIENCE) });
        if (answer.status === 401) { window.location.reload(); return; }
        if (!answer.ok) continue;
        const config = await answer.json();
        if (window.gradio_config && wired(config) !== wired(window.gradio_config)) { window.location.reload(); return; }
        program = config.app_id;
        break;
      } catch (error) { /* not yet */ }
    }
    here = true;
    missed = 0;
    while (unsent.length) ask(...unsent.shift()).catch(gone);
    beat();
    tell(back);
  }

  /* Silence is a sign of nothing by itself, a model may think: so the program is asked whether it is there, and whether it
     is still the same. Answers are counted, not seconds: the clock of a page that nobody looks at stands still. */
  let asking = false;
  async function look() {
    if (asking || !here) return;
    asking = true;
    try {
      const answer = await ask(root() + "/gradio_api/app_id", { signal: AbortSignal.timeout(PATIENCE) });
      const found = answer.ok ? (await answer.json()).app_id : program;
      missed = 0;
      program = program || (window.gradio_config || {}).app_id || found;
      if (found !== program) {
        program = found;
        tell(lost);
        beat();
      }
    } catch (error) {
      missed += 1;
      if (missed >= MISSES) gone();
    }
    asking = false;
  }
  window.setInterval(() => { if (joining || Object.keys(waiting).length) look(); }, EVERY);

  async function beat() {
    if (beating || !session) return;
    beating = true;
    const control = opened({});
    try {
      const answer = await ask(root() + "/gradio_api/heartbeat/" + session, { signal: control.signal });
      const reader = answer.body.getReader();
      while (!(await reader.read()).done) { /* beats say nothing more */ }
    } catch (error) { /* gone, or the page leaves */ }
    beating = false;
    close(control);
    gone();
  }

  function opened(settings) {
    const control = new AbortController();
    if (settings.signal) settings.signal.addEventListener("abort", () => control.abort());
    open.push(control);
    return control;
  }

  const close = (control) => { open = open.filter((one) => one !== control); };

  /* The stream of answers, whole however it ends. */
  async function answers(where, settings) {
    const control = opened(settings);
    const connected = async () => {
      const answer = await ask(where, Object.assign({}, settings, { signal: control.signal })).catch(() => null);
      return answer && answer.ok && answer.body ? answer.body.getReader() : null;
    };
    let reader = await connected();
    let text = new TextDecoder();
    let rest = "";
    let whole = false;
    return new Response(new ReadableStream({
      async pull(out) {
        const say = (message) => out.enqueue(new TextEncoder().encode("data: " + JSON.stringify(message) + "\n\n"));
        let part = null;
        try {
          part = reader ? await reader.read() : null;
        } catch (error) { /* ended below */ }
        if (part && !part.done) {
          missed = 0;
          rest += text.decode(part.value, { stream: true });
          const messages = rest.split("\n\n");
          rest = messages.pop();
          for (const one of messages) {
            const message = one.startsWith("data:") ? JSON.parse(one.slice(5)) : {};
            if (message.msg === "unexpected_error") { part = null; control.abort(); break; }
            if (message.msg === "process_completed") settle(message);
            if (message.msg === "close_stream") { whole = true; break; }
            out.enqueue(new TextEncoder().encode(one + "\n\n"));
          }
          if (part && !whole) return;
        }
        if (whole) {
          // What was asked while this stream was being closed is answered on another, which Gradio would not open.
          while (joining) await new Promise((ready) => window.setTimeout(ready, 10));
          if (Object.keys(waiting).length) {
            whole = false;
            rest = "";
            text = new TextDecoder();
            reader = await connected();
            return;
          }
          say({ msg: "close_stream" });
        }
        // A page that leaves ends its streams itself; nobody waits then.
        if (!whole && !(settings.signal && settings.signal.aborted)) {
          const unanswered = Object.keys(waiting);
          unanswered.forEach((event) => {
            const one = waiting[event];
            const state = { id: one.id, phase: "error", error: GONE, gone: true };
            const others = Array(Math.max(0, one.outputs - 1)).fill({ __type__: "update" });
            say({ msg: "process_completed", event_id: event, success: true, output: { data: [state].concat(others), is_generating: false } });
            delete waiting[event];
          });
          if (unanswered.length) say({ msg: "close_stream" });
          if (unanswered.length) gone();
        }
        close(control);
        out.close();
      },
      cancel() { control.abort(); },
    }), { status: 200, headers: { "content-type": "text/event-stream" } });
  }

  function settle(message) {
    const one = waiting[message.event_id];
    if (!one) early.add(message.event_id);
    delete waiting[message.event_id];
    if (one && message.success === false) tell(refused, { id: one.id, phase: "error", error: "error.unknown" });
  }

  const json = (value, status) => new Response(JSON.stringify(value), { status: status, headers: { "content-type": "application/json" } });

  window.fetch = async function (where, settings) {
    const address = String((where && where.url) || where);
    settings = settings || (where instanceof Request ? { signal: where.signal } : {});
    if (address.includes("/gradio_api/queue/data")) return answers(where, settings);
    const joins = address.includes("/gradio_api/queue/join");
    const quick = address.includes("/gradio_api/run/");
    if (!joins && !quick) return ask(where, settings);
    let body = {};
    try { body = JSON.parse(settings.body); } catch (error) { /* a request without an id has nobody waiting for it */ }
    const id = (body.event_data || {}).id || "";
    session = body.session_hash || session;
    left.add(id);
    const control = opened(settings);
    joining += 1;
    look();
    try {
      // A photo may take its time over the network, but not to a program that was not there a moment ago.
      const signals = quick || !here ? [control.signal, AbortSignal.timeout(PATIENCE)] : [control.signal];
      const answer = await ask(where, Object.assign({}, settings, { signal: AbortSignal.any(signals) }));
      if (joins && answer.ok) {
        const known = ((window.gradio_config || {}).dependencies || []).find((one) => one.id === body.fn_index) || {};
        const event = (await answer.clone().json()).event_id;
        if (!early.delete(event)) waiting[event] = { id: id, outputs: (known.outputs || [0]).length };
      } else if (joins) tell(refused, { id: id, phase: "error", error: { 413: "error.too_large", 503: "error.crowded" }[answer.status] || "error.unknown" });
      return answer;
    } catch (error) {
      // What Gradio hears must be no break: a refusal of a request, silence about a message.
      if (quick) unsent.push([where, Object.assign({}, settings, { signal: undefined })]);
      tell(refused, { id: id, phase: "error", error: GONE, gone: true, unsent: quick });
      gone();
      return quick ? json({ data: [] }, 200) : json({ detail: "" }, 503);
    } finally {
      joining -= 1;
      close(control);
    }
  };

  /* When the program has answered everything that this page asked: Gradio drops a request whose like is not quite done. */
  function free() {
    return new Promise((ready) => {
      const check = () => window.setTimeout(joining || Object.keys(waiting).length ? check : ready, 20);
      check();
    });
  }

  /* Sends an event, and again while nothing left the page: Gradio drops in silence what comes before it is ready. `wanted`
     says whether it is still to be sent. */
  async function send(trigger, event, data, wanted) {
    for (let tries = 0; tries < 20; tries += 1) {
      await free();
      if (wanted && !wanted()) return;
      trigger(event, data);
      for (let looks = 0; looks < 20 && !left.has(data.id); looks += 1) await new Promise((ready) => window.setTimeout(ready, 50));
      if (left.delete(data.id)) return;
    }
    tell(refused, { id: data.id, phase: "error", error: "error.unknown" });
  }

  window.mmslmLine = {
    send,
    onRefused: (listener) => refused.push(listener),
    onLost: (listener) => lost.push(listener),
    onBack: (listener) => back.push(listener),
  };
})();
