// A terminal on a guest's serial console. Many may look, one types.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.mjs";
import { Terminal } from "./vendor/xterm.mjs";
import { Problem, get, openConsole } from "./api.mjs";
import { sentence } from "./words.mjs";

const [FIRST_WAIT_MS, LONGEST_WAIT_MS] = [500, 5000];
const [NORMAL, POLICY] = [1000, 1008];
const MOST_UNDRAWN = 4 * 2 ** 20;

// xterm.js makes its style sheets here; the page's policy lets those with its nonce in.
const { nonce } = document.querySelector("script[nonce]");
const create = document.createElement.bind(document);
document.createElement = (name, options) => {
  const element = create(name, options);
  if (name === "style") element.nonce = nonce;
  return element;
};

export function Console({ vm }) {
  const box = useRef();
  const live = useRef();
  const [told, setTold] = useState("connecting");
  const [writer, setWriter] = useState({ writer: null, you: false });
  useEffect(() => {
    // A serial line knows no size: guests take it for this one.
    const terminal = new Terminal({
      cols: 80,
      rows: 24,
      scrollback: 5000,
      screenReaderMode: true,
      linkHandler: { activate: () => {} }, // a guest chooses where its links lead
    });
    terminal.open(box.current);
    let [closed, wait, timer, undrawn, socket] = [false, FIRST_WAIT_MS, null, 0, null];
    let who = null; // until the supervisor has said
    // A browser does not say why a connection was refused.
    const refusal = async () => {
      try {
        return (await get(`vms/${vm.id}`)).ended ? "the VM has ended" : "";
      } catch (error) {
        return error instanceof Problem ? sentence(error) : "";
      }
    };
    const connect = () => {
      let opened = false;
      socket = openConsole(vm.id);
      socket.onopen = () => {
        opened = true;
        terminal.write("", () => terminal.reset()); // the last of what was printed comes again
        wait = FIRST_WAIT_MS;
        setTold("connected");
      };
      socket.onmessage = ({ data }) => {
        if (typeof data === "string") return setWriter((who = JSON.parse(data)));
        undrawn += data.byteLength;
        if (undrawn > MOST_UNDRAWN) return socket.close();
        return terminal.write(new Uint8Array(data), () => (undrawn -= data.byteLength));
      };
      socket.onclose = async ({ code, reason }) => {
        who = null;
        setWriter({ writer: null, you: false });
        if (closed) return;
        if (code === NORMAL || code === POLICY) return setTold(reason);
        const why = opened ? "" : await refusal();
        if (closed) return;
        if (why) return setTold(why);
        setTold("the connection is gone; trying again. What you type now is lost");
        timer = setTimeout(connect, wait);
        wait = Math.min(2 * wait, LONGEST_WAIT_MS);
      };
    };
    const send = (bytes) => socket.readyState === WebSocket.OPEN && socket.send(bytes);
    live.current = { take: () => (send('{"write": true}'), terminal.focus()) };
    // A key alone takes over: the terminal also answers questions of the guest's by itself.
    terminal.onKey(() => {
      if (who === null || who.you) return;
      if (who.writer !== null) return void setTold(`not heard: ${who.writer || "somebody"} types. Take over first`);
      send('{"write": true}');
      who = { ...who, you: true };
    });
    terminal.onData((text) => who?.you && send(new TextEncoder().encode(text)));
    terminal.attachCustomKeyEventHandler((event) => {
      const leaves = event.ctrlKey && !event.altKey && !event.getModifierState("AltGraph") && event.key === "]";
      if (!leaves) return true;
      document.getElementById("take").focus();
      return false;
    });
    connect();
    return () => {
      closed = true;
      clearTimeout(timer);
      socket.close();
      terminal.dispose();
    };
  }, [vm.id]);
  const types = writer.you ? "You type." : writer.writer === null ? "Nobody types: begin, and you do." : `${writer.writer || "Somebody"} types.`;
  return html`<p role="status">${told}. ${types} Ctrl-] leaves the terminal.</p>
    <p class="buttons"><button id="take" onClick=${() => live.current.take()}>Take over typing</button></p>
    <p>Who listens there is up to the guest: the one that qmp-supervisor builds prints and hears nobody.</p>
    <div class="terminal-box" tabindex="-1" ref=${box}></div>`;
}
