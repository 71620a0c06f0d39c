// Forms: a new run, and an algorithm for a VM that is there.

import { html, useState } from "./vendor/htm-preact.mjs";
import { send, upload } from "./api.mjs";
import { untilAnswered, untilVm } from "./live.mjs";
import { perform } from "./tasks.mjs";
import { Failure, duration, size } from "./words.mjs";

/** Send files to a VM's agent, and have it compute. Answers what came of it, as a sentence. */
async function compute(id, form, say) {
  const [algorithm] = form.getAll("algorithm");
  const data = form.getAll("data").filter((file) => file.size);
  const files = [[`vms/${id}/algorithm`, algorithm], ...data.map((file, number) => [`vms/${id}/data/${number}`, file])];
  for (const [path, file] of files) {
    say({ note: file.name });
    await upload(path, file, (sent) => say({ note: `${file.name}: ${size(sent)} of ${size(file.size)}` }));
  }
  say({ note: "the algorithm runs; it ends if this page is closed" });
  const wishes = { datasets: data.length, then: form.get("then") ? "end" : "keep" };
  if (!data.length) delete wishes.datasets;
  for (const name of ["time_limit", "memory_limit"]) if (form.get(name)) wishes[name] = form.get(name);
  const outcome = await send("POST", `vms/${id}/compute`, wishes);
  if (outcome.state !== "succeeded") throw new Error(`${outcome.state}: ${outcome.error || "see the VM's result"}`);
  return `computed in ${duration(outcome.duration_s)}: ${size(outcome.result_size)}`;
}

async function base64(file, text) {
  const bytes = file.size ? new Uint8Array(await file.arrayBuffer()) : new TextEncoder().encode(text);
  let found = "";
  for (let at = 0; at < bytes.length; at += 0x8000) found += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  return btoa(found);
}

function labelsOf(text) {
  const words = text.split(/[\s,]+/).filter(Boolean);
  return Object.fromEntries(words.map((word) => [word.split("=")[0], word.split("=").slice(1).join("=")]));
}

async function run(form, say) {
  const wanted = { computation: await base64(form.get("computation_file"), form.get("computation")) };
  for (const name of ["ttl", "restart", "template", "tee"]) if (form.get(name)) wanted[name] = form.get(name);
  if (form.get("labels")) wanted.labels = labelsOf(form.get("labels"));
  // A run whose answer was lost is the same run when it is asked for again.
  const key = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  const headers = { Prefer: "respond-async", "Idempotency-Key": key };
  say({});
  const { id } = await untilAnswered(() => send("POST", "run", wanted, headers));
  say({ vm: id, note: "waits for the agent" });
  location.hash = `#/vms/${id}`;
  const vm = await untilVm(id, (one) => one.ended || !["waiting", "sent"].includes(one.relay.state));
  if (vm.relay.state !== "answered") throw new Error(vm.error ?? `the computation is ${vm.relay.state}`);
  return form.get("algorithm").size ? compute(id, form, say) : "answered";
}

const Field = ({ name, children, hint }) => html`<label>
  <span>${name}${hint && html` <small>${hint}</small>`}</span>${children}
</label>`;

const Files = () => html`
  <${Field} name="Algorithm" hint="a Python program"><input type="file" name="algorithm" /><//>
  <${Field} name="Data" hint="one file or several"><input type="file" name="data" multiple /><//>
  <${Field} name="Time limit" hint="such as 10m"><input name="time_limit" autocomplete="off" /><//>
  <${Field} name="Memory limit" hint="such as 256M"><input name="memory_limit" autocomplete="off" /><//>
  <label class="check"><input type="checkbox" name="then" /> End the VM when its result is here</label>`;

const Choice = ({ name, values }) => html`<select name=${name}>
  <option value="">the supervisor's default</option>
  ${values.map((value) => html`<option>${value}</option>`)}
</select>`;

function submitted(what, vm, act, setError) {
  return async (event) => {
    event.preventDefault();
    const { dataset } = event.target;
    if (dataset.busy) return;
    const form = new FormData(event.target);
    setError(null);
    if (vm && !form.get("algorithm").size) return void setError(new Error("Choose the file of an algorithm."));
    dataset.busy = "yes"; // a second click is not a second run
    await perform(what, vm, (say) => act(form, say));
    delete dataset.busy;
  };
}

export function Run() {
  const [error, setError] = useState(null);
  return html`<h1>Run a computation</h1>
    <p>A new VM is started, and its agent gets the computation; then, if you choose one, an algorithm.</p>
    <form onSubmit=${submitted("Run", null, run, setError)}>
      <fieldset><legend>Computation</legend>
        <${Field} name="Text"><textarea name="computation" rows="3" required>{}</textarea><//>
        <${Field} name="or a file"><input type="file" name="computation_file" /><//>
        <${Field} name="Labels" hint="such as team=a night"><input name="labels" autocomplete="off" /><//>
      </fieldset>
      <fieldset><legend>Algorithm</legend><${Files} /></fieldset>
      <details><summary>The VM</summary>
        <${Field} name="Time to live" hint="such as 1h30m"><input name="ttl" autocomplete="off" /><//>
        <${Field} name="Restart"><${Choice} name="restart" values=${["never", "on-failure"]} /><//>
        <${Field} name="Template"><${Choice} name="template" values=${["auto", "off", "require"]} /><//>
        <${Field} name="TEE"><${Choice} name="tee" values=${["none", "auto", "sev", "sev-es", "sev-snp", "tdx"]} /><//>
      </details>
      <${Failure} error=${error} />
      <p class="buttons"><button class="action">Run</button></p>
    </form>`;
}

export function Compute({ vm }) {
  const [error, setError] = useState(null);
  return html`<form onSubmit=${submitted("Compute in", vm.id, (form, say) => compute(vm.id, form, say), setError)}>
    <fieldset><legend>Another algorithm</legend><${Files} /></fieldset>
    <${Failure} error=${error} />
    <p class="buttons"><button class="action">Compute</button></p>
  </form>`;
}
