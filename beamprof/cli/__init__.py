"""The command `beam`: one thin file per noun; each renders what a public function returns."""
