// Browsers start no worker for pages opened from a folder (file:). The search then runs in a hidden frame with the same two-way messages.
if (location.protocol === "file:") window.Worker = class extends EventTarget {
  constructor(url) {
    super();
    this.frame = document.createElement("iframe");
    this.frame.hidden = true;
    this.frame.srcdoc = `<script>
      window.postMessage = data => window.answer(data);
      window.importScripts = (...urls) => Promise.all(urls.map(src => new Promise((done, fail) =>
        document.head.append(Object.assign(document.createElement("script"), {src, onload: done, onerror: fail})))));
    <\/script><script src="${new URL(url, location.href)}"><\/script>`;
    this.ready = new Promise(done => this.frame.addEventListener("load", done, {once: true}));
    document.addEventListener("DOMContentLoaded", () => this.start(), {once: true});
    if (document.body) this.start();
  }
  start() {
    if (this.frame.isConnected) return;
    document.body.append(this.frame);
    this.ready.then(() => this.frame.contentWindow.answer = data => this.answer(data));
  }
  answer(data) {
    const event = new MessageEvent("message", {data});
    this.dispatchEvent(event);
    if (this.onmessage) this.onmessage(event);
  }
  postMessage(data) {
    this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", {data})));
  }
  terminate() { this.frame.remove(); }
};
