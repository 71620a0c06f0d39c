// What a guest prints, as text: nothing in it does anything here.

import { html, useRef, useState } from "./vendor/htm-preact.mjs";
import { Gone, stream } from "./api.mjs";
import { isMine, partsOf, pause, useWhileLooking } from "./live.mjs";
import { Failure } from "./words.mjs";

const LINES = 2000;
const AGAIN_MS = 2000;
const MOST_CHARACTERS = 500_000;
// Terminal control: sequences, then single characters, but not tabs and ends of lines.
const CONTROL = /\x1b\[[0-?]*[ -/]*[@-~]|\x1b[@-Z\\^_=>78()]?|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f]/g;

export function Logs({ vm }) {
  // Of a VM with parties its algorithms' are for who gets the result, the others for its owner.
  const [mine, gets] = [isMine(vm), !vm.parties || partsOf(vm).gets];
  const [source, setSource] = useState(mine ? "serial" : "algorithm");
  const [error, setError] = useState(null);
  const [over, setOver] = useState(false);
  const text = useRef();
  useWhileLooking(async (signal) => {
    setError(null);
    setOver(false);
    for (;;) {
      try {
        await show(`vms/${vm.id}/logs?source=${source}&tail=${LINES}&follow=1`, text.current, signal);
      } catch (failed) {
        if (signal.aborted) return;
        if (failed instanceof Gone) {
          await pause(AGAIN_MS, signal);
          continue;
        }
        setError(failed);
      }
      return void (signal.aborted || setOver(true));
    }
  }, [vm.id, source]);
  return html`<p>
      <label>Of <select value=${source} onChange=${(event) => setSource(event.target.value)}>
        ${mine && html`<option value="serial">the guest (serial console)</option>`}
        ${gets && html`<option value="algorithm">its algorithms</option>`}
        ${mine && html`<option value="qemu">QEMU</option>`}
      </select></label>
      ${" "}${over ? "This is all." : "New lines appear by themselves."}
    </p>
    <${Failure} error=${error} />
    <pre class="log" tabindex="0" role="log" aria-label="Log" ref=${text}></pre>`;
}

/** Show a log that begins anew with each answer; once for each picture, however much has come. */
async function show(path, into, signal) {
  const decoder = new TextDecoder();
  let [text, drawing] = ["", false];
  const draw = () => {
    drawing = false;
    if (signal.aborted) return;
    const atEnd = into.scrollHeight - into.scrollTop - into.clientHeight < 40;
    into.textContent = text;
    if (atEnd) into.scrollTop = into.scrollHeight;
  };
  for await (const piece of stream(path, signal)) {
    text += decoder.decode(piece, { stream: true }).replace(CONTROL, "");
    if (text.length > MOST_CHARACTERS) text = text.slice(-MOST_CHARACTERS / 2);
    if (!drawing) requestAnimationFrame(draw);
    drawing = true;
  }
}
