// A question before something that cannot be taken back. It names what it is about.

import { html, useEffect, useRef } from "./vendor/htm-preact.mjs";
import { shared, useShared } from "./live.mjs";

const asked = shared(null);

/** Whether the answer is yes. */
export function confirm(title, text, yes) {
  return new Promise((answer) => asked.set({ title, text, yes, answer }));
}

/** No: whoever was asked is not here any more. */
export function withdraw() {
  asked.value?.answer(false);
  asked.set(null);
}

export function Question() {
  const question = useShared(asked);
  const dialog = useRef();
  useEffect(() => {
    if (question) dialog.current.showModal();
  }, [question]);
  if (!question) return null;
  const close = (answer) => {
    asked.set(null);
    question.answer(answer);
  };
  return html`<dialog ref=${dialog} aria-labelledby="question" onCancel=${() => close(false)}>
    <h2 id="question">${question.title}</h2>
    <p>${question.text}</p>
    <p class="buttons">
      <button autofocus onClick=${() => close(false)}>Cancel</button>
      <button class="danger" onClick=${() => close(true)}>${question.yes}</button>
    </p>
  </dialog>`;
}
