"use strict";
// Sorting, filtering, copying and the theme switch. Every page is complete without this file.
(function () {
  var root = document.documentElement;

  function button(text, label, action) {
    var it = document.createElement("button");
    it.type = "button";
    it.textContent = text;
    if (label) it.setAttribute("aria-label", label);
    it.addEventListener("click", action);
    return it;
  }

  function themeSwitch() {
    var dark = matchMedia("(prefers-color-scheme: dark)");
    var isDark = function () { return root.dataset.theme ? root.dataset.theme === "dark" : dark.matches; };
    var it = button("", "", function () {
      root.dataset.theme = isDark() ? "light" : "dark";
      try { localStorage.setItem("selfbench-theme", root.dataset.theme); } catch (e) { /* kept for this page only */ }
      show();
    });
    var show = function () {
      it.textContent = isDark() ? "Light" : "Dark";
      it.setAttribute("aria-label", "Switch to the " + (isDark() ? "light" : "dark") + " theme");
    };
    it.className = "theme";
    dark.addEventListener("change", show);
    show();
    document.querySelector(".top").appendChild(it);
  }

  function value(cell) {
    var text = cell.hasAttribute("data-v") ? cell.getAttribute("data-v") : cell.textContent.trim();
    var number = text === "" || isNaN(text) ? NaN : Number(text);
    return { text: text, number: number, empty: text === "" || text === "–" };
  }

  function compare(a, b) {
    if (!isNaN(a.number) && !isNaN(b.number)) return a.number - b.number;
    return a.text.localeCompare(b.text, "en", { numeric: true });
  }

  function sortable(table) {
    var heads = table.tHead.rows[0].cells;
    var body = table.tBodies[0];
    Array.prototype.forEach.call(heads, function (head, at) {
      if (head.hasAttribute("data-fixed") || head.querySelector("a")) return;
      var it = document.createElement("button");
      it.type = "button";
      while (head.firstChild) it.appendChild(head.firstChild);
      head.appendChild(it);
      it.addEventListener("click", function () {
        var down = head.getAttribute("aria-sort") === "ascending";
        Array.prototype.forEach.call(heads, function (other) { other.removeAttribute("aria-sort"); });
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        var rows = Array.prototype.map.call(body.rows, function (row) { return { row: row, key: value(row.cells[at]) }; });
        rows.sort(function (a, b) {
          if (a.key.empty !== b.key.empty) return a.key.empty ? 1 : -1;
          return (down ? -1 : 1) * compare(a.key, b.key);
        });
        var all = document.createDocumentFragment();
        rows.forEach(function (item) { all.appendChild(item.row); });
        body.appendChild(all);
      });
    });
  }

  function filterable(table) {
    var label = document.createElement("label");
    var input = document.createElement("input");
    var shown = document.createElement("span");
    var rows = table.tBodies[0].rows;
    if (rows.length < 8) return;
    label.className = "filter";
    input.type = "search";
    shown.setAttribute("role", "status");
    label.append(table.dataset.filter + " ", input);
    input.addEventListener("input", function () {
      var words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      var count = 0;
      Array.prototype.forEach.call(rows, function (row) {
        var text = row.textContent.toLowerCase();
        row.hidden = !words.every(function (word) { return text.includes(word); });
        count += !row.hidden;
      });
      shown.textContent = words.length ? count + " of " + rows.length + " rows" : "";
    });
    var line = document.createElement("div");
    line.className = "filters";
    line.append(label, shown);
    table.parentNode.before(line);
  }

  function copyable(block) {
    var code = block.querySelector("code");
    var it = button("Copy", "Copy the command", function () {
      var done = function () {
        it.textContent = "Copied";
        setTimeout(function () { it.textContent = "Copy"; }, 1500);
      };
      var select = function () {
        var range = document.createRange();
        range.selectNodeContents(code);
        getSelection().removeAllRanges();
        getSelection().addRange(range);
        it.textContent = "Selected";
      };
      if (navigator.clipboard && isSecureContext) navigator.clipboard.writeText(code.textContent).then(done, select);
      else select();
    });
    block.appendChild(it);
  }

  themeSwitch();
  document.querySelectorAll("table[data-sort]").forEach(sortable);
  document.querySelectorAll("table[data-filter]").forEach(filterable);
  document.querySelectorAll("pre[data-copy]").forEach(copyable);
})();
