// The page: who looks at it, which part of it, and whether the supervisor is there.

import { html, render, useEffect, useState } from "./vendor/htm-preact.mjs";
import { drop, hasToken, signIn, signOut, whoAmI } from "./api.mjs";
import { caller, goneSince, link, linkProblem, may, useEvents, useShared } from "./live.mjs";
import { Run } from "./compute.mjs";
import { Host } from "./host.mjs";
import { Question, withdraw } from "./question.mjs";
import { Tasks, forget } from "./tasks.mjs";
import { Vm } from "./vm.mjs";
import { Vms } from "./vms.mjs";
import { Failure, sentence } from "./words.mjs";

function useHash() {
  const [hash, set] = useState(location.hash);
  useEffect(() => {
    const turn = () => set(location.hash);
    addEventListener("hashchange", turn);
    return () => removeEventListener("hashchange", turn);
  }, []);
  return hash;
}

function part(hash) {
  const [path, query] = hash.replace(/^#\/?/, "").split("?");
  const [name, id, tab] = path.split("/");
  if (name === "vms" && /^[0-9a-f-]{36}$/.test(id)) return html`<${Vm} key=${id} id=${id} tab=${tab} />`;
  if (name === "run" && may("run")) return html`<${Run} />`;
  if (name === "host") return html`<${Host} />`;
  if (name === "vms" || !name) return html`<${Vms} key=${query} which=${["live", "ended", "all"].includes(query) ? query : "live"} />`;
  return html`<h1>There is no such part</h1><p><a href="#/vms">VMs</a></p>`;
}

function Link() {
  const state = useShared(link);
  if (state === "refused") {
    return html`<p class="gone" role="alert"><span aria-hidden="true">!</span> Nothing changes here by itself now: ${sentence(linkProblem)}</p>`;
  }
  if (state !== "gone") return null;
  return html`<p class="gone" role="alert"><span aria-hidden="true">!</span> The supervisor has not answered since ${goneSince.toLocaleTimeString()}.
    What you see is of that time. This page tries again by itself; VMs go on without it.</p>`;
}

function SignIn({ problem }) {
  const [error, setError] = useState(null);
  const submit = (event) => {
    event.preventDefault();
    try {
      setError(null);
      signIn(new FormData(event.target).get("token").trim());
    } catch (refused) {
      setError(refused);
    }
  };
  return html`<main><h1>Sign in</h1>
    <form onSubmit=${submit}>
      <label><span>Token</span><input type="password" name="token" required autocomplete="current-password" /></label>
      <${Failure} error=${error ?? problem} />
      <p class="buttons"><button class="action">Sign in</button></p>
    </form>
    <p>Your operator makes one: <code>qmp-supervisor token create NAME --role ROLE</code>. It is kept until you sign out or
      close the last tab of this page. With a certificate that the supervisor knows, no token is needed.</p></main>`;
}

/** What signed-in people see; mounted anew for another caller. */
function Inside({ who }) {
  const hash = useHash();
  useEvents();
  useEffect(() => {
    document.getElementById("main").focus({ preventScroll: true });
  }, [hash]);
  const here = (name) => (hash.startsWith(`#/${name}`) || (name === "vms" && !hash) ? "page" : undefined);
  return html`<a class="skip" href="#main" onClick=${(event) => (event.preventDefault(), document.getElementById("main").focus())}>To the content</a>
    <header>
      <strong>qmp-supervisor${who.host && ` at ${who.host}`}</strong>
      <nav aria-label="Parts">
        <a href="#/vms" aria-current=${here("vms")}>VMs</a>
        ${may("run") && html`<a href="#/run" aria-current=${here("run")}>Run</a>`}
        <a href="#/host" aria-current=${here("host")}>Host</a>
      </nav>
      <span class="who">${who.name ? `${who.name} (${who.role})` : "MANAGER_AUTH=off: everybody may do everything"}
        ${hasToken() && html` <button onClick=${signOut}>Sign out</button>`}</span>
    </header>
    <${Link} />
    <main id="main" tabindex="-1">${may("see") ? part(hash) : html`<p>The role ${who.role} sees no VMs.</p>`}</main>
    <${Tasks} />
    <${Question} />`;
}

function Page() {
  const who = useShared(caller);
  const [problem, setProblem] = useState(null);
  useEffect(() => {
    let latest = 0;
    const ask = async (refused = null) => {
      const mine = ++latest;
      try {
        const found = await whoAmI();
        if (mine === latest) (setProblem(null), caller.set(found));
      } catch (error) {
        if (mine !== latest) return;
        if (error.status === 401 && hasToken()) {
          drop(); // whoever has a certificate needs none
          forget();
          withdraw();
          ask(error);
        } else if (error.status === 401) {
          setProblem(refused);
          caller.set(null);
        } else {
          setProblem(error);
          setTimeout(() => ask(refused), 2000);
        }
      }
    };
    const stranger = () => caller.value && ask();
    // What one caller has seen and done is not for the next.
    const change = () => {
      forget();
      withdraw();
      caller.set(undefined);
      ask();
    };
    addEventListener("caller", change);
    addEventListener("stranger", stranger);
    ask();
    return () => {
      removeEventListener("caller", change);
      removeEventListener("stranger", stranger);
    };
  }, []);
  if (who === undefined) return html`<main><h1>qmp-supervisor</h1><p>Asking the supervisor …</p><${Failure} error=${problem} /></main>`;
  if (who === null) return html`<${SignIn} problem=${problem} />`;
  return html`<${Inside} key=${`${who.name} ${who.role}`} who=${who} />`;
}

render(html`<${Page} />`, document.getElementById("page"));
