"use strict";
// The reader: one document and one group at a time. Without this script all of them are there.
(() => {
  const reader = document.querySelector(".reader");
  if (!reader) return;
  const documents = [...reader.querySelectorAll(".document")];
  const choice = reader.querySelector("#choice");
  reader.classList.add("scripted");
  reader.querySelector(".choose").hidden = false;

  const cuts = (doc) => [...doc.querySelectorAll(".cut")];
  const shown = () => documents.find((doc) => !doc.hidden);

  const showCut = (doc, cut) => {
    for (const other of cuts(doc)) {
      const pressed = other === cut;
      other.setAttribute("aria-pressed", String(pressed));
      document.getElementById(other.dataset.group).hidden = !pressed;
    }
  };

  const showDocument = (index) => {
    documents.forEach((doc, number) => { doc.hidden = number !== index; });
    choice.selectedIndex = index;
    const doc = documents[index];
    const pressed = cuts(doc).find((cut) => cut.getAttribute("aria-pressed") === "true");
    showCut(doc, pressed || cuts(doc)[0]);
  };

  const step = (by) => {
    const doc = shown();
    const all = cuts(doc);
    const now = all.findIndex((cut) => cut.getAttribute("aria-pressed") === "true");
    const next = all[(now + by + all.length) % all.length];
    showCut(doc, next);
    next.focus({ preventScroll: true });
    next.scrollIntoView({ block: "nearest", inline: "nearest" });
  };

  for (const doc of documents) {
    for (const cut of cuts(doc)) cut.addEventListener("click", () => showCut(doc, cut));
  }
  choice.addEventListener("change", () => showDocument(choice.selectedIndex));
  reader.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.target === choice) return;
    const index = documents.indexOf(shown());
    const moves = {
      ArrowLeft: () => step(-1),
      ArrowRight: () => step(1),
      "[": () => showDocument(Math.max(index - 1, 0)),
      "]": () => showDocument(Math.min(index + 1, documents.length - 1)),
    };
    if (!(event.key in moves)) return;
    event.preventDefault();
    moves[event.key]();
  });

  // On paper everything is there again.
  let before = 0;
  addEventListener("beforeprint", () => {
    before = documents.indexOf(shown());
    for (const part of reader.querySelectorAll(".document, .group")) part.hidden = false;
  });
  addEventListener("afterprint", () => {
    for (const doc of documents) {
      showCut(doc, cuts(doc).find((cut) => cut.getAttribute("aria-pressed") === "true") || cuts(doc)[0]);
    }
    showDocument(before);
  });

  // The last one: what the model had learned by then.
  showDocument(documents.length - 1);
})();
