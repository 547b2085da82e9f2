// A table of tokens with their probability as number and bar. Texts are set as textContent only.
const cell = (tag, name, text) => {
  const made = document.createElement(tag);
  made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
};

// Streamlit may call with older data after newer, when both arrive while the page loads.
const latest = new WeakMap();

export default function ({ data, parentElement }) {
  if (data.drawn < latest.get(parentElement)) return;
  latest.set(parentElement, data.drawn);
  const table = parentElement.querySelector("table");
  const head = document.createElement("tr");
  head.append(cell("th", "", "token"), cell("th", "", ""), cell("th", "number", "probability"));
  const rows = data.rows.map(({ text, probability, shown, isTrue }) => {
    const row = cell("tr", isTrue ? "true" : "");
    const bar = document.createElement("span");
    bar.style.width = `${100 * probability}%`;
    const holder = cell("td", "bar");
    holder.append(bar);
    row.append(cell("td", "text", text), holder, cell("td", "number", shown));
    return row;
  });
  table.setAttribute("aria-label", data.name);
  table.replaceChildren(head, ...rows);
}
