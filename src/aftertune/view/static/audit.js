// Puts the text of a chosen file into the field. The file itself is not sent.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const file = document.getElementById("document-file");
  file?.addEventListener("change", async () => {
    const [chosen] = file.files;
    const note = document.getElementById("file-note");
    if (!chosen) return;
    if (chosen.size > Number(file.dataset.most)) {
      note.textContent = `${chosen.name} has ${chosen.size.toLocaleString("en")} bytes; at most ${Number(file.dataset.most).toLocaleString("en")} can be sent.`;
      return;
    }
    document.getElementById("document-text").value = await chosen.text();
    note.textContent = `${chosen.name} is in the field below.`;
  });
});
