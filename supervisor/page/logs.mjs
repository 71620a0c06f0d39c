// What a guest prints, as text: nothing in it does anything here.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.mjs";
import { stream } from "./api.mjs";
import { Failure } from "./words.mjs";

const LINES = 2000;
const MOST_CHARACTERS = 500_000;
// Terminal control: sequences, then single characters, but not tabs and ends of lines.
const CONTROL = /\x1b\[[0-?]*[ -/]*[@-~]|\x1b[@-Z\\^_=>78()]?|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f]/g;

export function Logs({ vm }) {
  const [source, setSource] = useState("serial");
  const [error, setError] = useState(null);
  const [over, setOver] = useState(false);
  const text = useRef();
  useEffect(() => {
    const stop = new AbortController();
    text.current.textContent = "";
    setError(null);
    setOver(false);
    show(`vms/${vm.id}/logs?source=${source}&tail=${LINES}&follow=1`, text.current, stop.signal).then(
      () => stop.signal.aborted || setOver(true),
      (failed) => stop.signal.aborted || (setOver(true), setError(failed)),
    );
    return () => stop.abort();
  }, [vm.id, source]);
  return html`<p>
      <label>Of <select value=${source} onChange=${(event) => setSource(event.target.value)}>
        <option value="serial">the guest (serial console)</option>
        <option value="algorithm">its algorithms</option>
        <option value="qemu">QEMU</option>
      </select></label>
      ${" "}${over ? (vm.ended ? "The VM has ended: this is all." : "No more lines appear: choose anew.") : "New lines appear by themselves."}
    </p>
    <${Failure} error=${error} />
    <pre class="log" tabindex="0" role="log" aria-label="Log" ref=${text}></pre>`;
}

async function show(path, into, signal) {
  const decoder = new TextDecoder();
  for await (const piece of stream(path, signal)) {
    const atEnd = into.scrollHeight - into.scrollTop - into.clientHeight < 40;
    into.append(decoder.decode(piece, { stream: true }).replace(CONTROL, ""));
    if (into.textContent.length > MOST_CHARACTERS) into.textContent = into.textContent.slice(-MOST_CHARACTERS / 2);
    if (atEnd) into.scrollTop = into.scrollHeight;
  }
}
