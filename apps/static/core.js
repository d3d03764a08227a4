/* What every page of the apps shares: words in the person's language, two announcements per request, the theme,
   the photo intake (file, drop, paste, camera), and a voice that never leaves this machine. It makes no request of
   its own, and stores nothing in the browser. */
(function () {
  "use strict";
  if (window.mmslm) return;

  const words = window.mmslmWords || { en: {} };
  const MAX_BYTES = 10 * 1024 * 1024;
  const MAX_SIDE = 2048;
  const RIGHT_TO_LEFT = ["ar"];
  const listeners = [];
  let language = "en";

  function chooseLanguage(wanted) {
    for (const tag of wanted) {
      const base = String(tag).toLowerCase().split("-")[0];
      if (words[base]) return base;
    }
    return "en";
  }

  /* t("key", {name: value}) -> the sentence in the chosen language, English where a word is missing. */
  function t(key, values) {
    // Where others can open the page, it must not say that photos stay on "this" computer.
    if (window.mmslmRemote && key === "app.offline") key = "app.remote";
    if (window.mmslmRemote && key === "captioner.lead") key = "captioner.lead_remote";
    let text = (words[language] || {})[key] || words.en[key] || "";
    for (const name in values || {}) text = text.split("{" + name + "}").join(String(values[name]));
    return text;
  }

  function translate(root) {
    root.querySelectorAll("[data-i18n]").forEach((node) => {
      const text = t(node.dataset.i18n);
      if (text && node.textContent !== text) node.textContent = text;
    });
    root.querySelectorAll("[data-i18n-label]").forEach((node) => {
      node.setAttribute("aria-label", t(node.dataset.i18nLabel));
    });
    root.querySelectorAll("[data-i18n-placeholder]").forEach((node) => {
      node.setAttribute("placeholder", t(node.dataset.i18nPlaceholder));
    });
  }

  function markPage() {
    const html = document.documentElement;
    const direction = RIGHT_TO_LEFT.includes(language) ? "rtl" : "ltr";
    if (html.lang !== language) html.lang = language;
    if (html.dir !== direction) html.dir = direction;
  }
  /* Gradio writes its own guess at the language, and no direction, whenever its catalogue arrives: after us, at times. */
  new MutationObserver(markPage).observe(document.documentElement, { attributes: true, attributeFilter: ["lang", "dir"] });

  function setLanguage(code) {
    language = words[code] ? code : "en";
    markPage();
    document.title = t("app.title");
    translate(document);
    listeners.forEach((listener) => listener(language));
  }

  function setTheme(name) {
    const dark = name === "dark" || (name === "auto" && window.matchMedia("(prefers-color-scheme: dark)").matches);
    document.body.classList.toggle("dark", dark);
    document.documentElement.dataset.theme = dark ? "dark" : "light";
  }

  /* One sentence for a screen reader. The node is emptied first, so that the same sentence is said twice if it comes twice. */
  function announce(node, text) {
    node.textContent = "";
    window.setTimeout(() => { node.textContent = text; }, 60);
  }

  /* The quick questions, offered in the person's language, are asked in the model's. */
  const QUICK = { place: "what place is this?", colour: "what colour is it?", where: "where is it?", count: "how many are there?" };

  function newId() {
    const bytes = new Uint8Array(9);
    window.crypto.getRandomValues(bytes);
    return Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");
  }

  function readAsDataUrl(blob) {
    return new Promise((resolve, reject) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result);
      reader.onerror = () => reject(reader.error);
      reader.readAsDataURL(blob);
    });
  }

  /* A photo as the server wants it: at most MAX_SIDE pixels a side where the browser can decode it, else untouched. */
  async function prepare(blob) {
    let bitmap = null;
    try {
      bitmap = await createImageBitmap(blob, { imageOrientation: "from-image" });
    } catch (error) {
      bitmap = null;
    }
    if (!bitmap) {
      if (blob.size > MAX_BYTES) return { error: "error.too_large" };
      return { data: await readAsDataUrl(blob) };
    }
    const side = Math.max(bitmap.width, bitmap.height);
    let result = blob;
    if (side > MAX_SIDE || blob.size > MAX_BYTES / 4) {
      const scale = Math.min(1, MAX_SIDE / side);
      const canvas = document.createElement("canvas");
      canvas.width = Math.max(1, Math.round(bitmap.width * scale));
      canvas.height = Math.max(1, Math.round(bitmap.height * scale));
      const pen = canvas.getContext("2d");
      pen.fillStyle = "#fff";
      pen.fillRect(0, 0, canvas.width, canvas.height);
      pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
      result = (await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92))) || blob;
      canvas.width = canvas.height = 0;
    }
    bitmap.close();
    if (result.size > MAX_BYTES) return { error: "error.too_large" };
    return { data: await readAsDataUrl(result) };
  }

  /* The photo intake of a page. `taken(photo)` is called with {blob, url} when the person gave one. */
  function intake(root, taken, failed) {
    const input = root.querySelector("[data-file]");
    const drop = root.querySelector("[data-drop]");
    const camera = root.querySelector("[data-camera]");
    const video = root.querySelector("video");
    let stream = null;

    function accept(blob) {
      if (!blob) return;
      closeCamera(false);
      taken({ blob: blob, url: URL.createObjectURL(blob) });
    }
    function closeCamera(refocus) {
      if (stream) stream.getTracks().forEach((track) => track.stop());
      stream = null;
      video.srcObject = null;
      camera.hidden = true;
      drop.classList.remove("filming");
      if (refocus) root.querySelector("[data-open-camera]").focus();
    }
    root.querySelectorAll("[data-choose]").forEach((button) => button.addEventListener("click", () => input.click()));
    input.addEventListener("change", () => {
      accept(input.files && input.files[0]);
      input.value = "";
    });
    ["dragenter", "dragover"].forEach((name) => drop.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.add("over");
    }));
    ["dragleave", "drop"].forEach((name) => drop.addEventListener(name, () => drop.classList.remove("over")));
    drop.addEventListener("drop", (event) => {
      event.preventDefault();
      const file = event.dataTransfer && event.dataTransfer.files && event.dataTransfer.files[0];
      if (file) accept(file);
      else failed("error.drop_no_file");
    });
    document.addEventListener("paste", (event) => {
      if (!root.offsetParent) return;
      const files = event.clipboardData ? Array.from(event.clipboardData.files) : [];
      if (!files.length) return;
      event.preventDefault();
      accept(files[0]);
    });
    const supported = navigator.mediaDevices && navigator.mediaDevices.getUserMedia;
    root.querySelectorAll("[data-open-camera]").forEach((button) => {
      button.hidden = !supported;
      button.addEventListener("click", async () => {
        try {
          stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" }, audio: false });
        } catch (error) {
          failed("error.no_camera");
          return;
        }
        camera.hidden = false;
        drop.classList.add("filming");
        video.srcObject = stream;
        await video.play();
        root.querySelector("[data-shoot]").focus();
      });
    });
    root.querySelector("[data-shoot]").addEventListener("click", () => {
      const canvas = document.createElement("canvas");
      canvas.width = video.videoWidth;
      canvas.height = video.videoHeight;
      canvas.getContext("2d").drawImage(video, 0, 0);
      canvas.toBlob((blob) => accept(blob), "image/jpeg", 0.92);
    });
    root.querySelector("[data-close-camera]").addEventListener("click", () => closeCamera(true));
  }

  /* Speech: only voices that live on this machine (localService), never one that sends the text away. */
  const voice = {
    local() {
      const all = window.speechSynthesis ? window.speechSynthesis.getVoices() : [];
      return all.filter((one) => one.localService === true);
    },
    pick(tag) {
      const local = voice.local();
      const base = tag.split("-")[0];
      return local.find((one) => one.lang.replace("_", "-").toLowerCase().startsWith(base)) || local[0] || null;
    },
    /* parts: [{text, lang}]. Returns false when this machine has no voice of its own. */
    speak(parts, rate, ended) {
      voice.hush();
      const said = parts.filter((part) => part.text);
      if (!voice.local().length || !said.length) return false;
      said.forEach((part, index) => {
        const utterance = new SpeechSynthesisUtterance(part.text);
        utterance.voice = voice.pick(part.lang);
        utterance.lang = part.lang;
        utterance.rate = rate;
        if (index === said.length - 1) utterance.onend = utterance.onerror = ended;
        window.speechSynthesis.speak(utterance);
      });
      return true;
    },
    hush() { if (window.speechSynthesis) window.speechSynthesis.cancel(); },
  };

  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch (error) {
      const area = document.createElement("textarea");
      area.value = text;
      area.className = "visually-hidden";
      document.body.appendChild(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      return done;
    }
  }

  function el(tag, attributes, children) {
    const node = document.createElement(tag);
    for (const name in attributes || {}) {
      if (name === "text") node.textContent = attributes[name];
      else if (attributes[name] !== null && attributes[name] !== undefined) node.setAttribute(name, attributes[name]);
    }
    (children || []).forEach((child) => child && node.appendChild(child));
    return node;
  }

  /* The header: which page, which language, light or dark. */
  function header(element) {
    const links = Array.from(element.querySelectorAll("nav a"));
    const language_box = element.querySelector("[data-language]");
    const theme_box = element.querySelector("[data-theme-choice]");
    function open(name, focus) {
      if (!links.some((link) => link.dataset.page === name)) name = links[0].dataset.page;
      links.forEach((link) => {
        if (link.dataset.page === name) link.setAttribute("aria-current", "page");
        else link.removeAttribute("aria-current");
      });
      // The style sheet hides the other pages, whether they are there already or not.
      document.body.dataset.page = name;
      if (focus) {
        const title = document.querySelector("#page-" + name + " h1");
        if (title) title.focus();
        window.scrollTo(0, 0);
      }
    }
    links.forEach((link) => link.addEventListener("click", (event) => {
      event.preventDefault();
      voice.hush();
      window.history.replaceState(null, "", "#" + link.dataset.page);
      open(link.dataset.page, true);
    }));
    window.addEventListener("hashchange", () => open(window.location.hash.slice(1), true));
    language_box.value = language;
    language_box.addEventListener("change", () => setLanguage(language_box.value));
    theme_box.addEventListener("change", () => setTheme(theme_box.value));
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTheme(theme_box.value));
    const first = window.location.hash.slice(1);
    open(first || links[0].dataset.page, false);
    translate(element);
    setTheme(theme_box.value);
  }

  language = chooseLanguage(navigator.languages && navigator.languages.length ? navigator.languages : [navigator.language]);
  // Gradio puts this script into the page itself, before or after the event: whichever it is, the page gets its language.
  if (document.readyState === "loading") window.addEventListener("DOMContentLoaded", () => setLanguage(language));
  else window.setTimeout(() => setLanguage(language), 0);
  window.addEventListener("pagehide", () => voice.hush());
  window.mmslm = {
    QUICK, t, translate, announce, newId, prepare, intake, voice, copy, el, header, setLanguage,
    language: () => language,
    onLanguage: (listener) => listeners.push(listener),
    ...window.mmslmLine,
  };
})();
