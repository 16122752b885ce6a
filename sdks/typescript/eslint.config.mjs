import tseslint from "typescript-eslint";

export default tseslint.config(
  { ignores: ["dist/**"] },
  {
    files: ["src/**/*.ts"],
    extends: [tseslint.configs.strictTypeChecked, tseslint.configs.stylisticTypeChecked],
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname } },
    rules: {
      "@typescript-eslint/restrict-template-expressions": ["error", { allowNumber: true }],
      // `["name"]` is what the compiler asks for where names are not known.
      "@typescript-eslint/dot-notation": "off",
      // What comes from callers and servers is looked at although its type says that it is right.
      "@typescript-eslint/no-unnecessary-condition": "off",
      // A cast says that it is one; and a counting loop needs no iterator, which somebody may have replaced.
      "@typescript-eslint/non-nullable-type-assertion-style": "off",
      "@typescript-eslint/prefer-for-of": "off",
      "@typescript-eslint/no-extraneous-class": ["error", { allowStaticOnly: true }],
      "@typescript-eslint/consistent-type-definitions": ["error", "interface"],
      "@typescript-eslint/prefer-promise-reject-errors": ["error", { allowThrowingUnknown: true }],
      eqeqeq: "error",
      "no-console": "error",
      "max-len": ["error", { code: 160, ignoreStrings: true, ignoreTemplateLiterals: true }],
    },
  },
  {
    files: ["tests/**/*.mjs", "examples/**/*.mjs", "tools/**/*.mjs", "*.mjs"],
    rules: { eqeqeq: "error", "no-unused-vars": ["error", { ignoreRestSiblings: true }], "no-undef": "off", "prefer-const": "error" },
  },
);
