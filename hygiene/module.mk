# hygiene
