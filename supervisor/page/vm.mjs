// One VM: what it is, what happened, what it printed, and what can be done with it.

import { html, useEffect, useState } from "./vendor/htm-preact.mjs";
import { get, getFile, send } from "./api.mjs";
import { isMine, may, member, partsOf, useEvent, useLoaded } from "./live.mjs";
import { Compute, Parts } from "./compute.mjs";
import { Console } from "./console.mjs";
import { Logs } from "./logs.mjs";
import { confirm } from "./question.mjs";
import { perform } from "./tasks.mjs";
import { At, Failure, NOTHING, State, cpu, duration, labels, outcome, percent, short, size, tee } from "./words.mjs";

const TABS = { "": "Overview", events: "Events", logs: "Logs", console: "Console", result: "Result", command: "Command line" };
const READS = ["", "events", "command"];

export function Vm({ id, tab = "" }) {
  const [end, setEnd] = useState(null);
  useEvent((event) => isDeleted(event, id) && setEnd("deleted"), id);
  // From here on nothing asks about it: the answer would be that there is no such VM.
  if (end === "deleting") return html`<h1>VM ${short(id)}</h1><p>It is being deleted.</p>`;
  if (end === "deleted") return html`<${Missing} id=${id} />`;
  return html`<${There} id=${id} tab=${tab} setEnd=${setEnd} />`;
}

const isDeleted = (event, id) => event?.vm === id && event.event === "deleted";

const Missing = ({ id }) => html`<h1>VM ${short(id)}</h1>
  <p>There is no such VM any more, or it is not yours${member() && ", or its host does not answer"}. <a href="#/vms?all">All VMs</a></p>`;

function There({ id, tab, setEnd }) {
  const mine = (event) => event.vm === id && !isDeleted(event, id);
  const { value: vm, error } = useLoaded((signal) => get(`vms/${id}`, signal), id, { everyMs: 3000, wakes: mine });
  if (error?.status === 404) return html`<${Missing} id=${id} />`;
  if (!vm) return html`<h1>VM ${short(id)}</h1><${Failure} error=${error} />`;
  const tabs = Object.entries(TABS).filter(([name]) => READS.includes(name) || may("use"));
  return html`<h1>VM ${short(id)} <${State} ...${vm} /></h1>
    <${Failure} error=${error} />
    ${vm.error && html`<p class="failure"><span aria-hidden="true">✖</span> ${vm.error}</p>`}
    ${may("use") && isMine(vm) && html`<${Actions} vm=${vm} setEnd=${setEnd} />`}
    <nav class="tabs" aria-label="Parts of this VM">
      ${tabs.map(([name, words]) => html`<a href="#/vms/${id}${name && `/${name}`}" aria-current=${tab === name ? "page" : undefined}>${words}</a>`)}
    </nav>
    <${PARTS[tab] ?? Overview} key=${tab} vm=${vm} />`;
}

function Actions({ vm, setEnd }) {
  const name = `VM ${short(vm.id)}${labels(vm).length ? ` (${labels(vm).join(" ")})` : ""}`;
  const post = (what, act, json) => () => perform(what, vm.id, () => send("POST", `vms/${vm.id}/${act}`, json).then((now) => now.state));
  const asked = (title, text, yes, act) => async () => (await confirm(title, text, yes)) && act();
  const remove = async () => {
    setEnd("deleting");
    setEnd((await perform("Delete", vm.id, () => send("DELETE", `vms/${vm.id}`))) ? "deleted" : null);
  };
  const lost = "What its guest has in memory is lost.";
  return html`<p class="buttons">
    ${vm.state === "running" && html`<button onClick=${post("Pause", "pause")}>Pause</button>`}
    ${vm.state === "paused" && html`<button onClick=${post("Resume", "resume")}>Resume</button>`}
    ${["running", "paused"].includes(vm.state) && html`
      <button onClick=${asked(`Reset ${name}?`, `${lost} The guest boots again.`, "Reset", post("Reset", "reset"))}>Reset</button>`}
    ${!vm.ended && html`
      <button onClick=${asked(`Shut down ${name}?`, "Its guest is asked to power off. The VM ends.", "Shut down", post("Shut down", "shutdown", { mode: "graceful" }))}>Shut down</button>
      <button class="danger" onClick=${asked(`End ${name} by force?`, lost, "End", post("End", "shutdown", { mode: "force" }))}>End by force</button>`}
    <button class="danger" onClick=${asked(`Delete ${name}?`, `${vm.ended ? "" : "It runs: it is ended by force. "}Its logs, events and results are removed.`, "Delete", remove)}>Delete</button>
  </p>`;
}

function partiesOf(vm) {
  const { brought } = partsOf(vm);
  const parts = brought.map(([part, who]) => `${part}: ${who}, ${vm.parties.sent.includes(part) ? "sent" : "not sent yet"}`);
  if (vm.parties.algorithm_sha256) parts[0] += `, SHA-256 ${vm.parties.algorithm_sha256}`;
  return [...parts, `result: ${vm.parties.result.join(", ")}`].join("; ");
}

function Overview({ vm }) {
  const rows = {
    "Id": vm.id,
    ...(vm.host ? { "Host": vm.host } : {}),
    "Owner": vm.owner ?? NOTHING,
    "Labels": labels(vm).join(" ") || NOTHING,
    "For": vm.purpose,
    "Created": html`<${At} at=${vm.created_at} />`,
    "Ended": html`<${At} at=${vm.ended_at} />`,
    "Up": duration(vm.uptime_s),
    "CPU": percent(cpu(vm)),
    "Memory": size(vm.usage?.memory_bytes),
    "QEMU answers": vm.ended ? NOTHING : vm.monitor,
    "Agent": vm.agent.ready ? `ready, at ${vm.agent.address}` : (vm.agent.reason ?? "not ready"),
    "Outcome": outcome(vm),
    "TEE": tee(vm),
    "Parties": vm.parties ? partiesOf(vm) : NOTHING,
    "Not confidential because": vm.insecure.join("; ") || NOTHING,
    "Template": vm.template ?? "started from cold",
    "Ports": (vm.ended ? [] : vm.forwards).map((one) => `${one.host_address}:${one.host_port} → ${one.guest_port}`).join(", ") || NOTHING,
    "Time to live": vm.ttl_s ? duration(vm.ttl_s) : NOTHING,
    "Restart": `${vm.restart.policy}, ${vm.restart.count} so far`,
    "Directory": vm.directory,
  };
  return html`<dl class="facts">${Object.entries(rows).map(([name, words]) => html`<div><dt>${name}</dt><dd>${words}</dd></div>`)}</dl>
    <h2>Its start</h2><${Phases} phases=${vm.phases_s} />`;
}

/** When each step was reached, in seconds after the run was asked for. */
function Phases({ phases }) {
  // What comes after the answer is of a later boot.
  const steps = Object.entries(phases).filter(([, at]) => !(at > phases.relay)).sort(([, one], [, other]) => one - other);
  const last = Math.max(0.001, ...steps.map(([, at]) => at));
  let before = 0;
  return html`<table class="phases">
    <thead><tr><th scope="col">Step</th><th scope="col">reached after</th><th scope="col">took</th><th scope="col"><span class="unseen">Share</span></th></tr></thead>
    <tbody>${steps.map(([name, at]) => {
      const [from, took] = [before, at - before];
      before = at;
      return html`<tr><th scope="row">${name}</th><td>${at.toFixed(3)} s</td><td>${took.toFixed(3)} s</td>
        <td class="bar"><svg viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">
          <rect x=${(100 * from) / last} width=${Math.max(0.5, (100 * took) / last)} height="6" /></svg></td></tr>`;
    })}</tbody>
  </table>`;
}

const DATA_OF = ({ sequence, at, vm, host, event, ...data }) =>
  Object.entries(data).filter(([, value]) => value !== "" && value !== null).map(([name, value]) => `${name}: ${typeof value === "object" ? JSON.stringify(value) : value}`).join(", ");

function Events({ vm }) {
  const path = `vms/${vm.id}/events?limit=1000`;
  const { value, error } = useLoaded((signal) => get(path, signal), path, { wakes: (event) => event.vm === vm.id && event.event !== "deleted" });
  return html`<${Failure} error=${error} />
    ${value?.next && html`<p>The first ${value.events.length} events; the command has all: qmp-supervisor events.</p>`}
    <table><thead><tr><th scope="col">Time</th><th scope="col">Event</th><th scope="col">What</th></tr></thead>
      <tbody>${value?.events.map((event) => html`<tr key=${event.sequence}>
        <td><${At} at=${event.at} /></td><td>${event.event}</td><td>${DATA_OF(event)}</td></tr>`)}</tbody></table>`;
}

const SHOWN = 64 * 1024;

function Result({ vm }) {
  const [shown, setShown] = useState(null);
  const mine = !vm.parties || partsOf(vm).gets;
  const told = mine && vm.computed !== null && !["running", "interrupted"].includes(vm.computed);
  const load = async (signal) => (told ? get(`vms/${vm.id}/outcome`, signal) : null);
  // Not by events: only what is known of the VM says whether there is an outcome to ask for.
  const { value, error } = useLoaded(load, `${vm.id} ${told}`, { wakes: () => false, version: vm.sequence });
  const fetch = (act) => () => perform("Fetch the result of", vm.id, async (say) => {
    const file = await getFile(`vms/${vm.id}/result`, (bytes) => say({ note: `${size(bytes)} of ${size(value.result_size)}` }));
    await act(file);
    return size(file.size);
  });
  const save = (file) => {
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(file), download: `${short(vm.id)}-result` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  };
  useEffect(() => {
    if (value?.state === "succeeded" && value.result_size <= SHOWN) getFile(`vms/${vm.id}/result`).then(show, () => {});
  }, [value?.ended_at]);
  const show = async (file) => setShown({ of: value.ended_at, text: await file.slice(0, SHOWN).text() });
  return html`<h2>The last algorithm</h2>
    ${error && (error.status === 409 ? html`<p>${error.message}</p>` : html`<${Failure} error=${error} />`)}
    ${!error && value === null && html`<p>${vm.computed ?? "It has run none."}${vm.computed === "interrupted" ? ": its events say why." : ""}</p>`}
    ${!mine && html`<p>The result is for ${vm.parties.result.join(", ")}.</p>`}
    ${!error && value && html`
      <p>${value.state} after ${duration(value.duration_s)}${value.error && `: ${value.error}`}</p>
      ${value.state === "succeeded" && html`<p class="buttons">
        <button onClick=${fetch(show)}>Show the result</button>
        <button onClick=${fetch(save)}>Save the result (${size(value.result_size)})</button></p>
        <p>SHA-256 <code>${value.result_sha256}</code></p>`}
      ${shown?.of === value.ended_at && shown && html`<pre class="log" tabindex="0" aria-label="Result">${shown.text}</pre>`}
      ${["stdout", "stderr"].filter((name) => value[name]).map((name) => html`<h3>${name}</h3><pre class="log" tabindex="0" aria-label=${name}>${value[name]}</pre>`)}`}
    ${!vm.ended && vm.agent.ready && (vm.parties ? html`<${Parts} vm=${vm} />` : html`<${Compute} vm=${vm} />`)}`;
}

function Terminals({ vm }) {
  if (vm.ended) return html`<p>The VM has ended. What it printed is in its <a href="#/vms/${vm.id}/logs">logs</a>.</p>`;
  if (vm.parties) return html`<p>A VM with parties has no console: who types there might get what is theirs alone.</p>`;
  return html`<${Console} vm=${vm} />`;
}

const Command = ({ vm }) => html`<p>QEMU's command line, for a shell:</p><pre class="log" tabindex="0" aria-label="Command line">${vm.command}</pre>`;

const PARTS = { "": Overview, events: Events, logs: Logs, console: Terminals, result: Result, command: Command };
