// What the page knows of the supervisor, and how it stays up to date.

import { useEffect, useRef, useState } from "./vendor/htm-preact.mjs";
import { Gone, Problem, follow, get, session } from "./api.mjs";

/** A value that several parts of the page show. */
class Shared {
  #listeners = new Set();
  constructor(value) {
    this.value = value;
  }
  set(value) {
    this.value = value;
    for (const listener of [...this.#listeners]) listener(value);
  }
  listen(listener) {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }
}

export function useShared(shared) {
  const [value, set] = useState(shared.value);
  useEffect(() => {
    set(shared.value);
    return shared.listen(set);
  }, [shared]);
  return value;
}

export const shared = (value) => new Shared(value);

/** Who calls: undefined before that is known, null for a stranger. */
export const caller = shared(undefined);

/** Whether the VM is the caller's own; of one with parties, its owner's and its operators'. */
export const isMine = (vm) => !vm.parties || vm.owner === caller.value?.name || ["operate", "admin"].includes(caller.value?.role);

/** The parts of a VM with parties that the caller brings, and whether it gets the result. */
export function partsOf({ parties }) {
  const me = caller.value?.name;
  const brought = [["algorithm", parties.algorithm], ...parties.data.map((who, number) => [`data/${number}`, who])];
  return { brings: brought.filter(([, who]) => who === me).map(([part]) => part), gets: parties.result.includes(me), brought };
}

/** In a fleet: the name of the member that answers here. */
export const member = () => caller.value?.host;

/** The members whose events do not arrive. */
export const unreached = shared([]);

function hear({ host, state }) {
  const others = unreached.value.filter((name) => name !== host);
  unreached.set(state === "unreached" ? [...others, host].sort() : others);
}

export const may = (right) => Boolean(caller.value?.rights.includes(right));

/** Whether events arrive: "connecting", "live", "gone" since `goneSince`, "refused" by `linkProblem`. */
export const link = shared("connecting");
export let goneSince = null;
export let linkProblem = null;

const events = shared(null);
const [FIRST_WAIT_MS, LONGEST_WAIT_MS] = [500, 5000];

export const pause = (ms, signal) =>
  new Promise((done) => {
    const timer = setTimeout(done, ms);
    signal?.addEventListener("abort", () => (clearTimeout(timer), done()), { once: true });
  });

function setLink(value) {
  if (value === "gone" && link.value !== "gone") goneSince = new Date();
  if (link.value !== value) link.set(value);
}

/** Do `act(signal)` while somebody looks: a tab in the background has no connection. */
export function useWhileLooking(act, keys) {
  useEffect(() => {
    let looking = null;
    const turn = () => {
      looking?.abort();
      if (document.hidden) return;
      looking = new AbortController();
      act(looking.signal);
    };
    turn();
    document.addEventListener("visibilitychange", turn);
    return () => {
      document.removeEventListener("visibilitychange", turn);
      looking?.abort();
    };
  }, keys);
}

/** Follow events. */
export function useEvents() {
  const last = useRef("");
  useWhileLooking(async (signal) => {
    for (let wait = FIRST_WAIT_MS; !signal.aborted; wait = Math.min(2 * wait, LONGEST_WAIT_MS)) {
      try {
        const told = (event) => {
          if (!event) setLink("live");
          if (!event) unreached.set([]); // those that are not are told again
          if (event?.event === "host") hear(event);
          wait = FIRST_WAIT_MS;
          // Without an event: something may have been missed.
          events.set(event);
        };
        await follow(last.current, signal, told, (id) => (last.current = id));
      } catch (error) {
        if (signal.aborted) return;
        if (error.status === 401) return; // whoever it is signs in again
        if (error.status === 400 && last.current) {
          last.current = ""; // the host has become a member of a fleet, or left one
          continue;
        }
        if (error instanceof Problem) {
          linkProblem = error;
          setLink("refused");
          await pause(1000 * (error.retryAfter || 5), signal);
          continue;
        }
      }
      setLink("gone");
      await pause(wait, signal);
    }
  }, []);
}

/** Call `told` with each event, and with null if some may have been missed. */
export function useEvent(told, key) {
  useEffect(() => events.listen(told), [key]);
}

/**
 * What `load(signal)` answers, and its last error: loaded at once, after each event for which
 * `wakes` is true, and every `everyMs` while somebody looks. Another `key` is another thing; with
 * another `version` it is the same thing, which is loaded again. `quiet`: not when events come back.
 */
export function useLoaded(load, key, { everyMs = 0, wakes = () => true, soonMs = 500, version = null, quiet = false } = {}) {
  const [state, set] = useState({ key });
  useEffect(() => {
    const stop = new AbortController();
    let [busy, again, soon, failed] = [false, false, null, false];
    const reload = async () => {
      if (busy) return void (again = true);
      busy = true;
      try {
        const value = await load(stop.signal);
        failed = false;
        if (!stop.signal.aborted) set({ key, value });
      } catch (error) {
        failed = true;
        if (!stop.signal.aborted) set((old) => ({ key, value: old.key === key ? old.value : undefined, error }));
      }
      busy = false;
      if (again) wake();
    };
    const wake = () => {
      again = false;
      soon ??= setTimeout(() => ((soon = null), reload()), soonMs);
    };
    const deaf = events.listen((event) => (event === null ? !quiet || failed : wakes(event)) && wake());
    const ticking = everyMs ? setInterval(() => document.hidden || reload(), everyMs) : null;
    reload();
    return () => {
      stop.abort();
      deaf();
      clearInterval(ticking);
      clearTimeout(soon);
    };
  }, [key, version]);
  return state.key === key ? state : { key };
}

const passes = (error) => error instanceof Gone || error.status === 429 || error.status >= 500;

/** What `act()` answers, however often the supervisor must be asked until it is back. */
export async function untilAnswered(act) {
  const mine = session();
  for (;;) {
    try {
      return await act();
    } catch (error) {
      if (!(error instanceof Gone)) throw error;
    }
    await pause(LONGEST_WAIT_MS, mine);
    mine.throwIfAborted();
  }
}

/** The VM, once `is` is true of it. The supervisor may go away meanwhile and come back. */
export async function untilVm(id, is) {
  const mine = session();
  for (;;) {
    try {
      const vm = await get(`vms/${id}`);
      if (is(vm)) return vm;
    } catch (error) {
      if (!passes(error)) throw error;
    }
    const heard = new AbortController();
    const deaf = events.listen((event) => (event === null || event.vm === id) && heard.abort());
    await pause(2000, AbortSignal.any([heard.signal, mine]));
    deaf();
    mine.throwIfAborted();
  }
}
