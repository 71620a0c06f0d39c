// Each thing that is done here is a task: what, of which VM, how long, and what came of it.

import { html, useEffect } from "./vendor/htm-preact.mjs";
import { session } from "./api.mjs";
import { shared, useShared } from "./live.mjs";
import { duration, sentence, short } from "./words.mjs";

const KEY = "qmp-supervisor.tasks";
const [MOST, MOST_WORDS] = [30, 500];
const UNDER_WAY = "under way";

function kept() {
  try {
    const found = JSON.parse(sessionStorage.getItem(KEY)) ?? [];
    // Of one that was under way nobody waits any more.
    return found.map((task) => (task.state === UNDER_WAY ? { ...task, state: "unknown", note: "the page was loaded anew" } : task));
  } catch {
    return [];
  }
}

const tasks = shared(kept());

function put(task) {
  const others = tasks.value.filter((one) => one.number !== task.number);
  const all = [task, ...others].sort((one, other) => other.number - one.number).slice(0, MOST);
  tasks.set(all);
  sessionStorage.setItem(KEY, JSON.stringify(all));
}

let leaving = false;
addEventListener("pagehide", () => (leaving = true)); // what ends now does not say why
addEventListener("pageshow", () => (leaving = false));

/** Whoever looks now has done none of them. */
export function forget() {
  sessionStorage.removeItem(KEY);
  tasks.set([]);
}

/**
 * Do something, as a task. `act` gets a function that says how far it is, and what VM it is of.
 * Answers whether it was done; an error is in the task and goes no further.
 */
export async function perform(what, vm, act) {
  let task = { number: Date.now() + Math.random(), what, vm, began: Date.now(), state: UNDER_WAY, note: "" };
  const mine = session();
  const say = (more) => {
    mine.throwIfAborted(); // what was begun in another's name ends here
    put((task = { ...task, ...more }));
  };
  say({});
  try {
    const note = await act(say);
    say({ state: "done", note: note ?? "", ended: Date.now() });
    return true;
  } catch (error) {
    if (mine.aborted || leaving) return false;
    say({ state: "failed", note: sentence(error).slice(0, MOST_WORDS), ended: Date.now() });
    return false;
  }
}

const SIGNS = { [UNDER_WAY]: "\u2026", done: "\u2713", failed: "\u2716", unknown: "?" };

export function Tasks() {
  const all = useShared(tasks);
  const busy = all.some((task) => task.state === UNDER_WAY);
  useEffect(() => {
    if (!busy) return undefined;
    const ask = (event) => event.preventDefault();
    addEventListener("beforeunload", ask);
    return () => removeEventListener("beforeunload", ask);
  }, [busy]);
  if (!all.length) return null;
  return html`<section class="tasks" aria-label="Tasks">
    <h2>Tasks</h2>
    <ul aria-live="polite">
      ${all.map(
        (task) => html`<li key=${task.number} class=${task.state.replace(" ", "-")}>
          <span class="word"><span aria-hidden="true">${SIGNS[task.state]}</span> ${task.state}</span>
          <span>${task.what} ${task.vm && html`<a href="#/vms/${task.vm}${task.part ? `/${task.part}` : ""}">VM ${short(task.vm)}</a>`}</span>
          <span class="note">${task.note}</span>
          <span>${task.ended ? duration((task.ended - task.began) / 1000) : ""}</span>
        </li>`,
      )}
    </ul>
  </section>`;
}
