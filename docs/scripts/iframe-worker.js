// Browsers start no worker for a page from a disk.  There, the search runs in a hidden frame that
// offers what its script asks of a worker: importScripts, postMessage and addEventListener.
if (location.protocol === "file:") {
  window.IFrameWorker = true; // tells the search to resolve paths from its script
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const inner = frame.contentWindow;
      this.ready = new Promise((resolve) => {
        const load = (source) =>
          new Promise((loaded) => {
            const script = inner.document.createElement("script");
            script.src = new URL(source, new URL(url, document.baseURI));
            script.onload = script.onerror = loaded;
            inner.document.body.append(script);
          });
        inner.importScripts = (...sources) =>
          sources.reduce((before, source) => before.then(() => load(source)), Promise.resolve());
        inner.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
        load("").then(resolve);
      });
      this.post = (data) => inner.dispatchEvent(new MessageEvent("message", { data }));
    }
    postMessage(data) {
      this.ready.then(() => this.post(data));
    }
    terminate() {}
  };
}
