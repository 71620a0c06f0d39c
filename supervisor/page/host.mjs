// The host: what it is worth, its templates, and VMs that are kept ready.

import { html, useState } from "./vendor/htm-preact.mjs";
import { get } from "./api.mjs";
import { may, member, useLoaded } from "./live.mjs";
import { Away, Table } from "./vms.mjs";
import { At, Failure, NOTHING, Verdict, duration, labels, size } from "./words.mjs";

export const Host = () => html`<h1>Host ${member()}</h1>
  ${member() && may("host") && html`<${Fleet} />`}
  ${may("host") && html`<${Checks} /><${Technologies} />`}
  ${may("templates") && html`<${Templates} />`}
  <${Pool} />`;

/** What each member of the fleet says of itself; and whose sign of life has been missing for up to a day. */
function Fleet() {
  const { value, error } = useLoaded((signal) => get("hosts", signal), "hosts", { everyMs: 3000 });
  const columns = ["Host", "State", "Room", "TEE", "Template", "Labels", "Image", "Version", "Since", "Address"];
  return html`<h2>Hosts of the fleet</h2>
    <${Failure} error=${error} />
    <${Away} />
    ${value && !value.reached && html`<p class="failure" role="alert"><span aria-hidden="true">!</span> The fleet's record is not reached: no run starts, and what is said here is of before.</p>`}
    ${value && html`<table class="cards"><thead><tr>${columns.map((name) => html`<th scope="col">${name}</th>`)}</tr></thead>
      <tbody>${value.hosts.map((host) => {
        const cells = [
          host.draining ? "draining: it takes no runs" : "ready",
          `${host.room} more VMs`,
          Object.entries(host.tee).map(([name, free]) => `${name}: ${free}`).join(", ") || NOTHING,
          host.template ? "yes" : "no",
          labels(host).join(" ") || NOTHING,
          host.image?.slice(0, 12) ?? NOTHING,
          host.version,
          html`<${At} at=${host.since} />`,
          host.address,
        ];
        return html`<tr key=${host.name}><th scope="row">${host.name}${host.name === value.self && " (this one)"}</th>
          ${cells.map((cell, number) => html`<td data-name=${columns[number + 1]}>${cell}</td>`)}</tr>`;
      })}
      ${value.lost.map(({ name, lost_s }) => html`<tr key=${name}><th scope="row">${name}</th>
        <td data-name="State">lost ${duration(lost_s)} ago</td>
        ${columns.slice(2).map((column) => html`<td data-name=${column}>${NOTHING}</td>`)}</tr>`)}</tbody></table>`}`;
}

function Checks() {
  const [round, setRound] = useState(0);
  const { value, error } = useLoaded((signal) => get("host/checks", signal), round, { wakes: () => false, quiet: true });
  return html`<h2>Checks</h2>
    <${Failure} error=${error} />
    ${value ? html`<table><thead><tr><th scope="col">Verdict</th><th scope="col">Of</th><th scope="col">What was found</th></tr></thead>
      <tbody>${value.checks.map((check) => html`<tr><td><${Verdict} ...${check} /></td><th scope="row">${check.name}</th>
        <td>${check.detail}${check.advice && html`<br /><small>${check.advice}</small>`}</td></tr>`)}</tbody></table>` : html`<p>Looking …</p>`}
    <p class="buttons"><button onClick=${() => setRound(round + 1)}>Check again</button></p>`;
}

function Technologies() {
  const { value, error } = useLoaded((signal) => get("host", signal), "host", { wakes: () => false, quiet: true });
  const layers = Object.keys(Object.values(value?.technologies ?? {})[0] ?? {});
  return html`<h2>Confidential guests</h2>
    <${Failure} error=${error} />
    ${value && html`<table><thead><tr><th scope="col">Technology</th>${layers.map((name) => html`<th scope="col">${name}</th>`)}</tr></thead>
      <tbody>${Object.entries(value.technologies).map(([name, row]) => html`<tr><th scope="row">${name}</th>
        ${layers.map((layer) => html`<td title=${`${row[layer].found} ${row[layer].advice}`}><${Verdict} ...${row[layer]} /></td>`)}</tr>`)}</tbody></table>`}`;
}

function Templates() {
  const { value, error } = useLoaded((signal) => get("templates", signal), "templates", { everyMs: 5000, soonMs: 1000 });
  return html`<h2>Templates</h2>
    <${Failure} error=${error} />
    ${value?.why && html`<p>${value.why}</p>`}
    ${value && (value.templates.length ? html`<table><thead><tr>${["Template", "State", "Since", "VMs on it", "Size", "Problem"].map((name) => html`<th scope="col">${name}</th>`)}</tr></thead>
      <tbody>${value.templates.map((one) => html`<tr><th scope="row">${one.digest}</th><td>${one.state}</td><td><${At} at=${one.since} /></td>
        <td>${one.clones}</td><td>${size(one.size_bytes)}</td><td>${one.problem || NOTHING}</td></tr>`)}</tbody></table>` : html`<p>There is none.</p>`)}`;
}

function Pool() {
  const { value, error } = useLoaded((signal) => get(`vms?purpose=pool&ended=false&usage=true${member() ? "&host=self" : ""}`, signal), "pool", { everyMs: 5000 });
  return html`<h2>Pool</h2>
    <${Failure} error=${error} />
    ${value && (value.vms.length ? html`<${Table} vms=${value.vms} />` : html`<p>No VM is kept ready for a later run.</p>`)}`;
}
