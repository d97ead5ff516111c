// Runs before the first paint, so that a chosen theme does not flash.
try {
  var chosen = localStorage.getItem("selfbench-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch (e) { /* storage is off: the system's preference holds */ }
