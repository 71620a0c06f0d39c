// Forms: a new run, and an algorithm for a VM that is there.

import { html, useState } from "./vendor/htm-preact.mjs";
import { send, upload } from "./api.mjs";
import { partsOf, untilAnswered, untilVm } from "./live.mjs";
import { perform } from "./tasks.mjs";
import { Failure, duration, size } from "./words.mjs";

/** Send files to a VM's agent, and have it compute. Answers what came of it, as a sentence. */
async function compute(id, form, say) {
  const [algorithm] = form.getAll("algorithm");
  const data = form.getAll("data").filter((file) => file.size);
  const files = [[`vms/${id}/algorithm`, algorithm], ...data.map((file, number) => [`vms/${id}/data/${number}`, file])];
  for (const [path, file] of files) await sendFile(path, file, say);
  return runIt(id, form, data.length, say);
}

async function sendFile(path, file, say) {
  say({ note: file.name });
  await upload(path, file, (sent) => say({ note: `${file.name}: ${size(sent)} of ${size(file.size)}` }));
}

async function runIt(id, form, datasets, say) {
  say({ part: "result", note: "the algorithm runs; it ends if this page is closed" });
  const wishes = { ...(datasets ? { datasets } : {}), then: form.get("then") ? "end" : "keep" };
  for (const name of ["time_limit", "memory_limit"]) if (form.get(name)) wishes[name] = form.get(name);
  const outcome = await send("POST", `vms/${id}/compute`, wishes);
  if (outcome.state !== "succeeded") throw new Error(`${outcome.state}: ${outcome.error || "see the VM's result"}`);
  return `computed in ${duration(outcome.duration_s)}: ${size(outcome.result_size)}`;
}

/** What is wrong with a form, before anything is begun; empty if nothing is known to be. */
function wrong(form, isNew) {
  const has = (name) => form.getAll(name).some((file) => file.size);
  if (has("data") && !has("algorithm")) return "Choose the file of an algorithm: nothing would compute with the data.";
  if (isNew && has("algorithm") && !has("data")) return "Choose a file of data for the algorithm.";
  const [time, memory] = ["time_limit", "memory_limit"].map((name) => form.get(name));
  if (time && !/^([0-9.]+(ms|s|m|h|d|w))+$|^P/.test(time)) return "The time limit is a duration such as 90s, 10m or 1h30m.";
  if (memory && !/^[1-9][0-9]{0,6}[MGmg]$/.test(memory)) return "The memory limit is a size such as 256M.";
  return "";
}

async function base64(file, text) {
  const bytes = file.size ? new Uint8Array(await file.arrayBuffer()) : new TextEncoder().encode(text || "{}");
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

const Limits = () => html`
  <${Field} name="Time limit" hint="such as 10m"><input name="time_limit" autocomplete="off" /><//>
  <${Field} name="Memory limit" hint="such as 256M"><input name="memory_limit" autocomplete="off" /><//>
  <label class="check"><input type="checkbox" name="then" /> End the VM when its result is here</label>`;

const Files = () => html`
  <${Field} name="Algorithm" hint="a Python program"><input type="file" name="algorithm" /><//>
  <${Field} name="Data" hint="one file or several"><input type="file" name="data" multiple /><//>
  <${Limits} />`;

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
    const why = wrong(form, !vm) || (vm && !form.get("algorithm").size && "Choose the file of an algorithm.");
    if (why) return void setError(new Error(why));
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
        <${Field} name="Text" hint="JSON that the agent gets and answers; {} will do"><textarea name="computation" rows="3">{}</textarea><//>
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

/** Of a VM with parties each sends its own parts, and who gets the result has it computed. */
export function Parts({ vm }) {
  const { brings, gets } = partsOf(vm);
  const [error, setError] = useState(null);
  const act = (what, part) => async (event) => {
    event.preventDefault();
    const form = new FormData(event.target);
    const file = form.get("file");
    const why = part && !file.size ? `Choose the file for ${part}.` : wrong(form, false);
    setError(why ? new Error(why) : null);
    if (why) return;
    await perform(what, vm.id, async (say) => {
      if (!part) return runIt(vm.id, form, 0, say);
      await sendFile(`vms/${vm.id}/${part}`, file, say);
      return `sent ${size(file.size)}`;
    });
  };
  return html`<${Failure} error=${error} />
    ${brings.map((part) => html`<form key=${part} onSubmit=${act(`Send ${part} to`, part)}>
      <fieldset><legend>Yours: ${part}${vm.parties.sent.includes(part) ? ", sent; another takes its place" : ""}</legend>
        <${Field} name="File"><input type="file" name="file" /><//></fieldset>
      <p class="buttons"><button class="action">Send ${part}</button></p></form>`)}
    ${gets && html`<form onSubmit=${act("Compute in", null)}>
      <fieldset><legend>The result is yours</legend><${Limits} /></fieldset>
      <p class="buttons"><button class="action">Compute</button></p></form>`}`;
}
