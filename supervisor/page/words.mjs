// How things are said: times, sizes, states. State has a word and a sign, never a colour alone.

import { html } from "./vendor/htm-preact.mjs";

export const short = (id) => id.slice(0, 8);

export const NOTHING = "\u2014";

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return NOTHING;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const [s, m, h] = [Math.floor(seconds % 60), Math.floor(seconds / 60) % 60, Math.floor(seconds / 3600)];
  if (h >= 48) return `${Math.floor(h / 24)} d ${h % 24} h`;
  if (h) return `${h} h ${m} min`;
  return m ? `${m} min ${s} s` : `${s} s`;
}

export function size(bytes) {
  if (bytes === null || bytes === undefined) return NOTHING;
  for (const unit of ["bytes", "KiB", "MiB"]) {
    if (bytes < 1024) return `${bytes < 10 && unit !== "bytes" ? bytes.toFixed(1) : Math.round(bytes)} ${unit}`;
    bytes /= 1024;
  }
  return `${bytes.toFixed(1)} GiB`;
}

/** A time of the supervisor's, in the reader's zone; the whole of it when it is pointed at. */
export function At({ at }) {
  if (!at) return NOTHING;
  const time = new Date(at);
  const today = time.toDateString() === new Date().toDateString();
  return html`<time dateTime=${at} title=${at}>${today ? time.toLocaleTimeString() : time.toLocaleString()}</time>`;
}

const SIGNS = { prelaunch: "\u25cb", running: "\u25b6", paused: "\u2016", shutdown: "\u25bd", shutoff: "\u25a0", crashed: "\u2716" };

export function State({ state, reason }) {
  const why = reason && reason !== state ? ` (${reason})` : "";
  return html`<span class="state ${state}"><span aria-hidden="true">${SIGNS[state] ?? "?"}</span> ${state}${why}</span>`;
}

const VERDICTS = { ok: "\u2713", note: "\u2013", warn: "!", fail: "\u2716", missing: "\u2716", unknown: "?" };

export function Verdict({ verdict }) {
  return html`<span class="verdict ${verdict}"><span aria-hidden="true">${VERDICTS[verdict] ?? "?"}</span> ${verdict}</span>`;
}

export function tee(vm) {
  if (vm.tee === "none") return NOTHING;
  if (!vm.attested) return `${vm.tee}, not attested`;
  return `${vm.tee}, attested${vm.attested.by ? ` by ${vm.attested.by}` : ""}`;
}

export const labels = (vm) => Object.entries(vm.labels ?? {}).map(([name, value]) => (value ? `${name}=${value}` : name));

/** What became of its algorithm, else of its computation. */
export const outcome = (vm) => vm.computed ?? (vm.relay.state === "idle" ? NOTHING : vm.relay.state);

/** CPUs that a VM takes, between two answers about it; null before the second. */
const samples = new Map();
export function cpu(vm) {
  const now = vm.usage;
  if (!now) return null;
  const { before, at, share } = samples.get(vm.id) ?? {};
  if (at === now.at) return share;
  const spanS = before ? (new Date(now.at) - new Date(before.at)) / 1000 : 0;
  const next = spanS > 0 ? Math.max(0, (now.cpu_s - before.cpu_s) / spanS) : null;
  samples.set(vm.id, { before: now, at: now.at, share: next });
  return next;
}

export const percent = (share) => (share === null || share === undefined ? NOTHING : `${Math.round(100 * share)} %`);

/** What an error says, and what to do. */
export const sentence = ({ message, advice }) => (advice && !message.includes(advice) ? `${message}; ${advice}` : message);

export function Failure({ error }) {
  return error ? html`<p class="failure" role="alert"><span aria-hidden="true">✖</span> ${sentence(error)}</p>` : null;
}
