// A row of tokens as buttons; the chosen one goes back to Python as the trigger "picked".
// Texts are set as textContent only: a token may hold markup.
const isDark = (host) => {
  const paint = document.createElement("canvas").getContext("2d");
  paint.fillStyle = getComputedStyle(host).getPropertyValue("--st-background-color") || "#fff";
  paint.fillRect(0, 0, 1, 1);
  const [r, g, b] = paint.getImageData(0, 0, 1, 1).data;
  return r + g + b < 384;
};

const element = (tag, name, text) => {
  const made = document.createElement(tag);
  made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
};

const legend = (data, theme) => {
  const head = element("div", "head", "");
  const ramp = element("span", "ramp");
  ramp.style.background = data.gradients[theme];
  head.append(element("span", "", data.title), element("span", "", data.low), ramp,
    element("span", "", data.high));
  return head;
};

const button = (token, index, data, theme) => {
  const made = element("button", "token", token.text);
  made.type = "button";
  made.classList.toggle("word", token.word);
  made.classList.toggle("special", token.special);
  const [background, text] = token.shades[theme];
  made.style.background = background;
  made.style.color = text;
  made.title = token.label;
  made.setAttribute("aria-label", token.label);
  made.setAttribute("aria-pressed", String(index === data.selected));
  made.tabIndex = index === data.selected ? 0 : -1;
  if (!token.special) {
    const bar = element("span", "bar");
    bar.style.width = `${100 * token.strength}%`;
    bar.style.background = text;
    made.append(bar);
  }
  return made;
};

// Streamlit may call with older data after newer, when both arrive while the page loads.
const latest = new WeakMap();

export default function ({ data, parentElement, setTriggerValue }) {
  if (data.drawn < latest.get(parentElement)) return;
  latest.set(parentElement, data.drawn);
  const root = parentElement.querySelector(".strip");
  const theme = isDark(root) ? "dark" : "light";
  const hadFocus = root.contains(parentElement.activeElement ?? null);
  const tokens = element("div", "tokens");
  tokens.setAttribute("role", "toolbar");
  tokens.setAttribute("aria-label", data.name);
  const buttons = data.tokens.map((token, index) => button(token, index, data, theme));
  data.tokens.forEach((token, index) => {
    tokens.append(buttons[index]);
    if (token.breaks) tokens.append(document.createElement("br"));
  });
  tokens.onclick = (event) => {
    const index = buttons.indexOf(event.target.closest("button"));
    if (index >= 0) setTriggerValue("picked", index);
  };
  tokens.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const next = buttons[buttons.indexOf(event.target) + step];
    if (next) { next.focus(); event.preventDefault(); }
  };
  root.replaceChildren(legend(data, theme), tokens);
  if (hadFocus) buttons[data.selected]?.focus();
}
