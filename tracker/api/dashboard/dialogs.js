// What the page asks: for the key, and whether you mean it.

const part = (dialog, selector) => dialog.querySelector(selector);

/** Asks for a key, again and again until there is one that `accepts` (which raises what to say otherwise) lets pass. */
export async function askKey(accepts) {
  const dialog = document.getElementById("ask-key");
  const [form, input] = [part(dialog, "form"), part(dialog, "input")];
  dialog.addEventListener("cancel", stay);
  input.value = "";
  dialog.showModal();
  try {
    for (;;) {
      await submitted(form);
      const wrong = await accepts(input.value.trim()).then(() => null, (error) => error.message);
      if (wrong === null) return;
      tell(dialog, wrong);
      input.select();
    }
  } finally {
    input.value = "";
    tell(dialog, null);
    dialog.removeEventListener("cancel", stay);
    dialog.close();
  }
}

/** Asks whether to do something, and does it: `act` may raise, which is told. Returns whether it was done. */
export async function confirm(title, text, label, act) {
  const dialog = document.getElementById("confirm");
  const form = part(dialog, "form");
  part(dialog, "h2").textContent = title;
  part(dialog, "p").textContent = text;
  part(dialog, ".danger").textContent = label;
  tell(dialog, null);
  dialog.showModal();
  part(dialog, "[value=no]").focus();
  try {
    for (;;) {
      if ((await submitted(form, dialog)) !== "yes") return false;
      const wrong = await act().then(() => null, (error) => error.message);
      if (wrong === null) return true;
      tell(dialog, wrong);
    }
  } finally {
    dialog.close();
  }
}

function tell(dialog, wrong) {
  const line = part(dialog, ".wrong");
  line.textContent = wrong ?? "";
  line.hidden = wrong === null;
}

function stay(event) { event.preventDefault(); }

/** Which button was pressed; nothing when the dialog was cancelled. */
function submitted(form, dialog) {
  return new Promise((resolve) => {
    const done = new AbortController();
    const settle = (value) => { done.abort(); resolve(value); };
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      settle(event.submitter?.value);
    }, { signal: done.signal });
    dialog?.addEventListener("close", () => settle(undefined), { signal: done.signal });
  });
}
