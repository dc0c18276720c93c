# A replacement for the part of nixpkgs' lib that flake.nix, module.nix and machine.nix use: options and their types,
# merged definitions with priorities, and errors for unknown options and values of the wrong type. With this
# replacement, these files can be evaluated without nixpkgs. If NIXPKGS_LIB is set, the tests compare the results with
# those of nixpkgs' lib.
let
  inherit (builtins)
    attrNames
    concatMap
    concatStringsSep
    elem
    filter
    foldl'
    head
    isAttrs
    isBool
    isFunction
    isInt
    isList
    isString
    length
    listToAttrs
    mapAttrs
    ;
  is = type: it: isAttrs it && it._type or null == type;

  # Moves conditions (mkIf) and priorities (mkOverride) from a set of definitions into each definition. The names of the
  # defined options can then be read without evaluating a condition.
  pushDown =
    it:
    if is "merge" it then
      concatMap pushDown it.contents
    else if is "if" it then
      map (mapAttrs (_: lib.mkIf it.condition)) (pushDown it.content)
    else if is "override" it then
      map (mapAttrs (_: lib.mkOverride it.priority)) (pushDown it.content)
    else
      [ it ];
  # The definitions of an option whose conditions are true, with their priorities.
  discharge =
    it:
    if is "merge" it then
      concatMap discharge it.contents
    else if is "if" it then
      (if it.condition then discharge it.content else [ ])
    else if is "override" it then
      map (inner: inner // { inherit (it) priority; }) (discharge it.content)
    else
      [
        {
          priority = 100;
          value = it;
        }
      ];
  strongest =
    found:
    let
      least = foldl' (least: it: if it.priority < least then it.priority else least) 9999 found;
    in
    map (it: it.value) (filter (it: it.priority == least) found);

  mergeValues =
    path: type: definitions:
    let
      values = strongest (concatMap discharge definitions);
      wrong = filter (value: !type.check value) values;
    in
    if wrong != [ ] then
      throw "A definition for option `${path}' is not of type `${type.name}'."
    else
      type.merge path values;

  one =
    path: values:
    if length values == 1 || filter (value: value != head values) values == [ ] then
      head values
    else
      throw "The option `${path}' has conflicting definition values.";

  evaluateOption =
    path: option: definitions:
    let
      default = if option ? default then [ (lib.mkOverride 1500 option.default) ] else [ ];
      all = default ++ definitions;
    in
    if concatMap discharge all == [ ] && !(option.type.emptyIsValid or false) then
      throw "The option `${path}' was accessed but has no value defined."
    else
      mergeValues path option.type all;

  evaluateTree =
    path: options: definitions:
    let
      all = concatMap pushDown definitions;
      unknown = filter (name: !(options ? ${name})) (concatMap attrNames all);
      evaluate =
        name: option:
        let
          inner = if path == "" then name else "${path}.${name}";
          found = concatMap (it: if it ? ${name} then [ it.${name} ] else [ ]) all;
        in
        if is "option" option then evaluateOption inner option found else evaluateTree inner option found;
    in
    if unknown != [ ] then
      throw "The option `${path}.${head unknown}' does not exist."
    else
      mapAttrs evaluate options;

  mergeOptions =
    left: right:
    left
    // mapAttrs (
      name: option:
      if !(left ? ${name}) then
        option
      else if is "option" option || is "option" left.${name} then
        throw "The option `${name}' is declared twice."
      else
        mergeOptions left.${name} option
    ) right;

  type =
    name: check: merge:
    {
      inherit name check merge;
    };

  lib = {
    inherit (builtins)
      attrNames
      attrValues
      concatMap
      concatStringsSep
      filter
      head
      mapAttrs
      ;
    genAttrs =
      names: f:
      listToAttrs (
        map (name: {
          inherit name;
          value = f name;
        }) names
      );
    getExe' = package: name: "${package}/bin/${name}";
    concatStrings = concatStringsSep "";
    last = list: builtins.elemAt list (length list - 1);
    filterAttrs = holds: set: listToAttrs (
      map (name: {
        inherit name;
        value = set.${name};
      }) (filter (name: holds name set.${name}) (attrNames set))
    );
    mapAttrsToList = f: set: map (name: f name set.${name}) (attrNames set);
    hasPrefix = prefix: text: builtins.substring 0 (builtins.stringLength prefix) text == prefix;
    importTOML = path: builtins.fromTOML (builtins.readFile path);
    licenses.mit.spdxId = "MIT";
    optional = condition: it: if condition then [ it ] else [ ];
    optionalAttrs = condition: it: if condition then it else { };
    optionalString = condition: it: if condition then it else "";
    optionals = condition: it: if condition then it else [ ];

    literalExpression = text: { inherit text; };
    literalMD = text: { inherit text; };
    mkOption = option: { _type = "option"; type = lib.types.raw; } // option;
    mkEnableOption =
      name:
      lib.mkOption {
        type = lib.types.bool;
        default = false;
        description = "Whether to enable ${name}.";
      };
    mkIf = condition: content: {
      _type = "if";
      inherit condition content;
    };
    mkMerge = contents: {
      _type = "merge";
      inherit contents;
    };
    mkOverride = priority: content: {
      _type = "override";
      inherit priority content;
    };
    mkForce = lib.mkOverride 50;

    types = {
      raw = type "raw" (_: true) one;
      attrs = type "attrs" isAttrs (_: foldl' (all: it: all // it) { });
      bool = type "bool" isBool one;
      package = type "package" (it: isAttrs it && it ? outPath) one;
      port = type "port" (it: isInt it && it >= 0 && it < 65536) one;
      ints.unsigned = type "unsigned integer" (it: isInt it && it >= 0) one;
      str = type "str" isString one;
      enum = values: type "enum" (it: elem it values) one;
      nullOr =
        inner:
        type "null or ${inner.name}" (it: it == null || inner.check it) (
          path: values: if elem null values then one path values else inner.merge path values
        );
      unique =
        { message }:
        inner:
        type inner.name inner.check (
          path: values:
          if length values == 1 then
            head values
          else
            throw "The option `${path}' is defined multiple times while it's expected to be unique.\n${message}"
        );
      listOf =
        inner:
        type "list of ${inner.name}" (it: isList it && filter (it: !inner.check it) it == [ ]) (_: builtins.concatLists)
        // {
          emptyIsValid = true;
        };
      attrsOf =
        inner:
        type "attribute set of ${inner.name}" isAttrs (
          path: values:
          let
            names = attrNames (foldl' (all: it: all // it) { } values);
            found = name: concatMap (it: if it ? ${name} then [ it.${name} ] else [ ]) values;
            defined = filter (name: concatMap discharge (found name) != [ ]) names;
          in
          lib.genAttrs defined (name: mergeValues "${path}.${name}" inner (found name))
        )
        // {
          emptyIsValid = true;
        };
      submodule =
        module:
        type "submodule" (it: isAttrs it || isFunction it) (
          path: values:
          (lib.evalModules {
            modules = [ module ] ++ map (config: { inherit config; }) values;
            # The argument `name` of a submodule is its name in the attribute set of submodules.
            specialArgs.name = lib.last (filter isString (builtins.split "\\." path));
          }).config
        );
    };

    evalModules =
      {
        modules,
        specialArgs ? { },
      }:
      let
        arguments = {
          inherit lib config;
        } // specialArgs;
        call =
          module:
          if isFunction module then
            module (
              arguments
              // mapAttrs (name: _: arguments.${name} or config._module.args.${name}) (builtins.functionArgs module)
            )
          else if isAttrs module then
            module
          else
            call (import module);
        collect =
          module:
          let
            called = call module;
            isPlain = !(called ? options || called ? config);
          in
          concatMap collect (called.imports or [ ])
          ++ [
            {
              options = called.options or { };
              config =
                if isPlain then builtins.removeAttrs called [ "imports" ] else called.config or { };
            }
          ];
        collected = concatMap collect modules;
        base._module.args = lib.mkOption {
          type = lib.types.attrsOf lib.types.raw;
          default = { };
        };
        options = foldl' mergeOptions base (map (module: module.options) collected);
        config = evaluateTree "" options (map (module: module.config) collected);
      in
      {
        inherit options config;
      };
  };
in
lib
