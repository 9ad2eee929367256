// The only script of the page: the search field, and details that are open on paper.
const field = document.getElementById("search");
const told = document.getElementById("told");
const shown = [...document.querySelectorAll("#examples article")];
if (field) {
  document.getElementById("find").hidden = false;
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const article of shown) {
      const text = article.textContent.toLowerCase();
      article.hidden = !words.every((word) => text.includes(word));
      count += article.hidden ? 0 : 1;
    }
    told.textContent = `${count} of ${shown.length} shown`;
  });
}
addEventListener("beforeprint", () => {
  for (const one of document.querySelectorAll("details:not(.long)")) one.open = true;
});
