// The API, as this page calls it: who calls, requests, uploads, streams.
//
// A token is kept for as long as tabs of this page are open, and goes along as a header. A cookie
// would go to every port of this host, and so to whoever else serves a page there.

const KEY = "qmp-supervisor.token";
const WHO = "whoami";
const SILENT_MS = 45_000; // three of the supervisor's keep-alives
const ANSWER_MS = 30_000; // the host's checks take the longest
const tabs = new BroadcastChannel("qmp-supervisor");
let token = sessionStorage.getItem(KEY);
// What was begun in one's name does not go on in another's.
let calling = new AbortController();

tabs.onmessage = ({ data }) => {
  if (data.ask && token) tabs.postMessage({ token });
  if (data.token && !token) keep(data.token);
  if (data.signOut) keep(null);
};
if (!token) tabs.postMessage({ ask: true });

function keep(value) {
  hold(value);
  dispatchEvent(new Event("caller"));
}

function hold(value) {
  calling.abort(new DOMException("Somebody else calls now.", "AbortError"));
  calling = new AbortController();
  token = value;
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
}

/** Use this token from now on. A word that no token can be is refused: it could be no header. */
export function signIn(value) {
  if (!/^[A-Za-z0-9._~+/-]+=*$/.test(value)) throw new Error("A token has no spaces and no such characters.");
  keep(value);
}

/** Forget the token, in all tabs. */
export function signOut() {
  tabs.postMessage({ signOut: true });
  keep(null);
}

/** Forget a token that is none any more, in this tab: a certificate may do. */
export const drop = () => hold(null);

/** Is aborted when another one calls: of what one has begun nothing goes on then. */
export const session = () => calling.signal;

export const hasToken = () => Boolean(token);

/** What the supervisor answers if it does not do what was asked: RFC 9457. */
export class Problem extends Error {
  constructor(status, told, retryAfter) {
    super(told.detail || told.title || `The answer has the status ${status}.`);
    Object.assign(this, { status, title: told.title, advice: told.advice, retryAfter });
  }
}

/** There is no answer: the supervisor, or the way to it, is gone. */
export class Gone extends Error {}

function headers(more) {
  const all = new Headers(more);
  if (token) all.set("Authorization", `Bearer ${token}`);
  return all;
}

async function ask(method, path, { body, more, signal } = {}) {
  const { signal: mine } = calling;
  const either = signal ? AbortSignal.any([signal, mine]) : mine;
  let answer;
  try {
    answer = await fetch(path, { method, body, signal: either, headers: headers(more), cache: "no-store", redirect: "error" });
  } catch (error) {
    if (signal?.reason?.name === "TimeoutError") throw new Gone("The supervisor does not answer in time.");
    if (either.aborted) throw error;
    throw new Gone("The supervisor does not answer.");
  }
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({}));
  if (answer.status === 401 && path !== WHO) dispatchEvent(new Event("stranger"));
  throw new Problem(answer.status, told, Number(answer.headers.get("Retry-After")));
}

/** GET: the JSON. */
export async function get(path, signal) {
  const timely = AbortSignal.timeout(ANSWER_MS);
  return (await ask("GET", path, { signal: signal ? AbortSignal.any([signal, timely]) : timely })).json();
}

/** Who calls. Alone of all requests a stranger's is no news: it is how that is found out. */
export const whoAmI = () => get(WHO);

/** GET: a file; `told` hears of the bytes that are here. */
export async function getFile(path, told) {
  const answer = await ask("GET", path);
  const parts = [];
  let size = 0;
  for await (const part of pieces(answer.body)) {
    parts.push(part);
    told?.((size += part.length));
  }
  return new Blob(parts, { type: "application/octet-stream" });
}

/** Another request, with JSON or nothing: its answer, if it has one. */
export async function send(method, path, json, more = {}) {
  const body = json === undefined ? undefined : JSON.stringify(json);
  if (body) more = { "Content-Type": "application/json", ...more };
  const answer = await ask(method, path, { body, more });
  return answer.status === 204 ? null : answer.json();
}

/** PUT a file; `told` hears of the bytes that are gone. By XMLHttpRequest: fetch does not tell that. */
export function upload(path, file, told) {
  return new Promise((done, failed) => {
    const request = new XMLHttpRequest();
    request.open("PUT", path);
    for (const [name, value] of headers()) request.setRequestHeader(name, value);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.upload.onprogress = (event) => told?.(event.loaded);
    request.onerror = () => failed(new Gone("The supervisor went away while it got this file."));
    request.onload = () => {
      let answer = {};
      try {
        answer = JSON.parse(request.responseText);
      } catch {
        // An answer of something between here and the supervisor.
      }
      if (request.status < 300) done(answer);
      else failed(new Problem(request.status, answer));
    };
    request.onabort = () => failed(new DOMException("Somebody else calls now.", "AbortError"));
    calling.signal.addEventListener("abort", () => request.abort());
    request.send(file);
  });
}

/** GET: the bytes of an answer without an end, piece by piece. */
export async function* stream(path, signal, more) {
  const answer = await ask("GET", path, { signal, more });
  yield new Uint8Array(); // there is an answer
  yield* pieces(answer.body, signal);
}

async function* pieces(body, signal) {
  const reader = body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Gone("The supervisor went away during its answer.");
  } finally {
    reader.cancel().catch(() => {});
  }
}

/**
 * Follow all events that the caller may see, until `signal` ends it or an error does. `told` gets
 * each event, and first null: from then on none is missed. `at` gets each id, which is what to come
 * back with: a number, or of a fleet what has one of each host.
 */
export async function follow(last, signal, told, at) {
  const more = { Accept: "text/event-stream", ...(last ? { "Last-Event-ID": last } : {}) };
  const ended = new AbortController();
  const both = AbortSignal.any([signal, ended.signal]);
  let silence;
  const heard = () => {
    clearTimeout(silence);
    silence = setTimeout(() => ended.abort(), SILENT_MS);
  };
  const decoder = new TextDecoder();
  let text = "";
  try {
    heard();
    for await (const piece of stream("events", both, more)) {
      heard();
      if (!piece.length) told(null);
      text += decoder.decode(piece, { stream: true });
      const messages = text.split("\n\n");
      text = messages.pop();
      for (const message of messages) {
        const of = (name) => message.split("\n").find((one) => one.startsWith(name))?.slice(name.length);
        const [id, data] = [of("id: "), of("data: ")];
        if (id) at(id);
        if (data) told(JSON.parse(data));
      }
    }
  } catch (error) {
    if (ended.signal.aborted && !signal.aborted) throw new Gone("The supervisor says nothing any more.");
    throw error;
  } finally {
    clearTimeout(silence);
  }
}

/** A WebSocket to a VM's console. A script can give one no header: the token is a subprotocol. */
export function openConsole(id) {
  const address = new URL(`vms/${id}/console`, location.href);
  address.protocol = address.protocol.replace("http", "ws");
  const socket = new WebSocket(address, ["console.qmp-supervisor", ...(token ? [`bearer.${token}`] : [])]);
  socket.binaryType = "arraybuffer";
  return socket;
}
