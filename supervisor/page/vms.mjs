// The table of VMs.

import { html, useRef, useState } from "./vendor/htm-preact.mjs";
import { get } from "./api.mjs";
import { may, member, unreached, useLoaded, useShared } from "./live.mjs";
import { At, Failure, NOTHING, State, cpu, duration, labels, outcome, percent, short, size, tee } from "./words.mjs";

const WHICH = { live: "ended=false", ended: "ended=true", all: "" };

export function Vms({ which = "live" }) {
  const [limit, setLimit] = useState(100);
  const [host, setHost] = useState("");
  const path = `vms?order=newest&usage=true&limit=${limit}&${WHICH[which]}${host && `&host=${encodeURIComponent(host)}`}`;
  const { value, error } = useLoaded((signal) => get(path, signal), path, { everyMs: 3000 });
  return html`<h1>VMs</h1>
    <nav class="tabs" aria-label="Which VMs">
      ${Object.keys(WHICH).map((one) => html`<a href="#/vms?${one}" aria-current=${one === which ? "page" : undefined}>${one}</a>`)}
      ${may("run") && html`<a class="action" href="#/run">Run a computation</a>`}
    </nav>
    ${member() && html`<${Hosts} page=${value} chosen=${host} choose=${setHost} />`}
    <${Failure} error=${error} />
    ${value && (value.vms.length ? html`<${Table} vms=${value.vms} />` : html`<p>${{ live: "No VM runs.", ended: "No VM that has ended is kept.", all: "There is no VM." }[which]}</p>`)}
    ${value?.next && html`<p><button onClick=${() => setLimit(Math.min(1000, limit + 200))}>Show more</button></p>`}`;
}

/** In a fleet: whose VMs are shown. */
function Hosts({ page, chosen, choose }) {
  const known = useRef(new Set([member()]));
  const missing = page?.missing ?? [];
  for (const name of [...missing, ...(page?.vms ?? []).map((vm) => vm.host)]) known.current.add(name);
  return html`<p><label>Host <select value=${chosen} onChange=${(event) => choose(event.target.value)}>
      <option value="">all</option>
      ${[...known.current].sort().map((name) => html`<option value=${name}>${name}</option>`)}
    </select></label></p>
    <${Away} missing=${missing} />`;
}

/** Those hosts that have not answered, or whose events do not arrive. */
export function Away({ missing = [] }) {
  const names = [...new Set([...missing, ...useShared(unreached)])].sort();
  return names.length > 0 && html`<p class="failure" role="alert"><span aria-hidden="true">!</span> No answer of ${names.join(", ")}: without what is there. VMs go on there unless the host itself is lost.</p>`;
}

export function Table({ vms }) {
  const columns = ["VM", ...(member() ? ["Host"] : []), "State", "For", "Owner", "Up", "CPU", "Memory", "Agent", "TEE", "Outcome", "Labels", "Created"];
  return html`<table class="cards">
    <thead><tr>${columns.map((name) => html`<th scope="col">${name}</th>`)}</tr></thead>
    <tbody>
      ${vms.map((vm) => {
        const cells = [
          ...(member() ? [vm.host] : []),
          html`<${State} ...${vm} />`,
          vm.purpose,
          vm.owner ?? NOTHING,
          duration(vm.uptime_s),
          percent(cpu(vm)),
          size(vm.usage?.memory_bytes),
          vm.agent_ready ? "ready" : NOTHING,
          tee(vm),
          outcome(vm),
          labels(vm).join(" ") || NOTHING,
          html`<${At} at=${vm.created_at} />`,
        ];
        return html`<tr key=${vm.id}>
          <th scope="row"><a href="#/vms/${vm.id}" title=${vm.id}>${short(vm.id)}</a></th>
          ${cells.map((cell, number) => html`<td data-name=${columns[number + 1]}>${cell}</td>`)}
        </tr>`;
      })}
    </tbody>
  </table>`;
}
