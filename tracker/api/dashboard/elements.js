// Making what is shown. Whatever comes from a session is text: nothing here, or elsewhere, reads markup.

/** An element with attributes, listeners (under `on`), and children: elements or texts. */
export function element(name, { on = {}, ...attributes } = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) set(made, key, value);
  for (const [type, listener] of Object.entries(on)) made.addEventListener(type, listener);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** The same for shapes. */
export function shape(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) set(made, key, value);
  made.append(...children);
  return made;
}

/** A button that copies a text, and says so for a moment. */
export function copyButton(text, what) {
  const button = element("button", { type: "button", class: "copy", title: `Copy ${what}` }, "Copy");
  button.addEventListener("click", async (event) => {
    event.stopPropagation();
    button.textContent = (await copied(text)) ? "Copied" : "Select and copy";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  return button;
}

function set(target, key, value) {
  if (value === false || value === null || value === undefined) return;
  target.setAttribute(key, value === true ? "" : value);
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copiedByCommand(text); // the clipboard is closed to pages that came over plain http from another machine
  }
}

function copiedByCommand(text) {
  const holder = element("textarea", { class: "unseen" });
  holder.value = text;
  (document.querySelector("dialog[open]") ?? document.body).append(holder);
  holder.select();
  try {
    return document.execCommand("copy");
  } finally {
    holder.remove();
  }
}
