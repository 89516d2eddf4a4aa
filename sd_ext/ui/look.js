() => {
  // A word's button adds the word to the prompt; pictures of few pixels are shown as pixels.
  document.addEventListener("click", (event) => {
    const button = event.target.closest(".sd-words button[data-word]");
    const field = document.querySelector("#sd-prompt textarea");
    if (!button || !field) return;
    const text = field.value.replace(/\s+$/, "");
    const value = text ? text + " " + button.dataset.word : button.dataset.word;
    Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, "value").set.call(field, value);
    field.dispatchEvent(new Event("input", { bubbles: true }));
    field.focus();
  });
  document.addEventListener("load", (event) => {
    const picture = event.target;
    if (picture.tagName !== "IMG" || !picture.closest(".sd-shot")) return;
    picture.dataset.small = Math.max(picture.naturalWidth, picture.naturalHeight) <= 256 ? "1" : "0";
  }, true);
}
