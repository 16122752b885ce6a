package aegisagent

import (
	"encoding"
	"encoding/json"
	"math"
	"reflect"
	"strings"
	"unicode/utf8"
)

// From a value of a Go type to plain JSON and back, exactly: what is read back is the value that was written, or there is no codec for the
// type. encoding/json is not asked. It matches keys whatever their case, calls methods that can say one thing and do another, leaves out
// fields, writes bytes as base64, replaces what is not UTF-8, and hands numbers back as others than were given.

type codec struct {
	// encode looks at each part once, and at no more than fits. where names the value in errors.
	encode func(value reflect.Value, where string, depth int, left *budget) (any, error)
	// decode fills a zero value; false where the plain value is not one of the type. Fields that are missing stay zero with gaps only.
	decode func(plain any, into reflect.Value, gaps bool) bool
}

// codecs finds the codec of each type once; types may hold themselves.
type codecs map[reflect.Type]*codec

var selfWriting = []reflect.Type{
	reflect.TypeFor[json.Marshaler](), reflect.TypeFor[json.Unmarshaler](),
	reflect.TypeFor[encoding.TextMarshaler](), reflect.TypeFor[encoding.TextUnmarshaler](),
}

func (c codecs) of(kind reflect.Type, where string) (*codec, error) {
	if known, ok := c[kind]; ok {
		return known, nil
	}
	if kind.Kind() != reflect.Interface {
		for _, method := range selfWriting {
			if kind.Implements(method) || reflect.PointerTo(kind).Implements(method) {
				return nil, misconfigured("%s (%s) writes or reads itself, which may differ from what runs; use plain fields", where, kind)
			}
		}
	}
	made := &codec{}
	c[kind] = made
	if err := c.fill(made, kind, where); err != nil {
		delete(c, kind)
		return nil, err
	}
	return made, nil
}

func (c codecs) fill(made *codec, kind reflect.Type, where string) error {
	switch kind.Kind() {
	case reflect.Bool:
		*made = codec{
			func(value reflect.Value, _ string, _ int, _ *budget) (any, error) { return value.Bool(), nil },
			func(plain any, into reflect.Value, _ bool) bool {
				flag, ok := plain.(bool)
				into.SetBool(flag)
				return ok
			},
		}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		*made = codec{
			func(value reflect.Value, where string, _ int, _ *budget) (any, error) {
				return integerValue(value.Int()), safeInteger(value.Int(), where)
			},
			func(plain any, into reflect.Value, _ bool) bool {
				integer, ok := integerOf(plain)
				if !ok || into.OverflowInt(integer) {
					return false
				}
				into.SetInt(integer)
				return true
			},
		}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		*made = codec{
			func(value reflect.Value, where string, _ int, _ *budget) (any, error) {
				// What is beyond the range is beyond it as the largest integer too.
				integer := int64(min(value.Uint(), math.MaxInt64))
				return integerValue(integer), safeInteger(integer, where)
			},
			func(plain any, into reflect.Value, _ bool) bool {
				integer, ok := integerOf(plain)
				if !ok || integer < 0 || into.OverflowUint(uint64(integer)) {
					return false
				}
				into.SetUint(uint64(integer))
				return true
			},
		}
	case reflect.Float64:
		*made = codec{
			func(value reflect.Value, where string, _ int, _ *budget) (any, error) {
				return value.Float(), finite(value.Float(), where)
			},
			func(plain any, into reflect.Value, _ bool) bool {
				double, ok := plain.(float64)
				// An approver's edit may say 5 for 5.0; both have one canonical form.
				if integer, isInteger := integerOf(plain); isInteger {
					double, ok = float64(integer), true
				}
				into.SetFloat(double)
				return ok
			},
		}
	case reflect.String:
		if kind == reflect.TypeFor[json.Number]() {
			return misconfigured("%s is a json.Number, which may hold any text; use int64, float64 or string", where)
		}
		*made = codec{
			func(value reflect.Value, where string, _ int, left *budget) (any, error) {
				return value.String(), left.text(value.String(), where)
			},
			func(plain any, into reflect.Value, _ bool) bool {
				text, ok := plain.(string)
				into.SetString(text)
				return ok
			},
		}
	case reflect.Interface:
		if kind.NumMethod() > 0 {
			return misconfigured("%s (%s) may hold anything that has its methods; use plain fields", where, kind)
		}
		*made = codec{encodeAny, decodeAny}
	case reflect.Pointer:
		return c.fillPointer(made, kind, where)
	case reflect.Slice, reflect.Array:
		return c.fillList(made, kind, where)
	case reflect.Map:
		return c.fillMap(made, kind, where)
	case reflect.Struct:
		return c.fillStruct(made, kind, where)
	default:
		return misconfigured("%s (%s) has no exact form in JSON; use bool, integers, float64, string, and structs, maps and slices of them", where, kind)
	}
	return nil
}

func encodeAny(value reflect.Value, where string, depth int, left *budget) (any, error) {
	return exactCopy(value.Interface(), where, depth, left)
}

func decodeAny(plain any, into reflect.Value, _ bool) bool {
	if plain != nil {
		into.Set(reflect.ValueOf(plain))
	}
	return true
}

func (c codecs) fillPointer(made *codec, kind reflect.Type, where string) error {
	switch kind.Elem().Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map, reflect.Interface:
		return misconfigured("%s (%s) can be nil in two ways, which are one in JSON", where, kind)
	}
	element, err := c.of(kind.Elem(), where)
	if err != nil {
		return err
	}
	made.encode = func(value reflect.Value, where string, depth int, left *budget) (any, error) {
		if value.IsNil() {
			return nil, nil
		}
		return element.encode(value.Elem(), where, depth, left)
	}
	made.decode = func(plain any, into reflect.Value, gaps bool) bool {
		if plain == nil {
			return true
		}
		fresh := reflect.New(kind.Elem())
		into.Set(fresh)
		return element.decode(plain, fresh.Elem(), gaps)
	}
	return nil
}

func (c codecs) fillList(made *codec, kind reflect.Type, where string) error {
	if kind.Elem().Kind() == reflect.Uint8 {
		return misconfigured("%s (%s) is bytes, which JSON has not; use a string in an encoding of your own", where, kind)
	}
	element, err := c.of(kind.Elem(), where)
	if err != nil {
		return err
	}
	isSlice := kind.Kind() == reflect.Slice
	made.encode = func(value reflect.Value, where string, depth int, left *budget) (any, error) {
		if isSlice && value.IsNil() {
			return nil, nil
		}
		if err := left.open(value.Len(), where, depth); err != nil {
			return nil, err
		}
		items := make([]any, value.Len())
		for place := range items {
			item, err := element.encode(value.Index(place), where, depth+1, left)
			if err != nil {
				return nil, err
			}
			items[place] = item
		}
		return items, nil
	}
	made.decode = func(plain any, into reflect.Value, gaps bool) bool {
		if isSlice && plain == nil {
			return true
		}
		items, ok := plain.([]any)
		if !ok || (!isSlice && len(items) != into.Len()) {
			return false
		}
		if isSlice {
			into.Set(reflect.MakeSlice(kind, len(items), len(items)))
		}
		for place, item := range items {
			if !element.decode(item, into.Index(place), gaps) {
				return false
			}
		}
		return true
	}
	return nil
}

func (c codecs) fillMap(made *codec, kind reflect.Type, where string) error {
	if kind.Key().Kind() != reflect.String {
		return misconfigured("%s (%s) has keys that are no strings", where, kind)
	}
	// Its codec is not needed, its refusals are.
	if _, err := c.of(kind.Key(), where); err != nil {
		return err
	}
	element, err := c.of(kind.Elem(), where)
	if err != nil {
		return err
	}
	made.encode = func(value reflect.Value, where string, depth int, left *budget) (any, error) {
		if value.IsNil() {
			return nil, nil
		}
		if err := left.open(value.Len(), where, depth); err != nil {
			return nil, err
		}
		members := make(map[string]any, value.Len())
		for each := value.MapRange(); each.Next(); {
			key := each.Key().String()
			if err := left.text(key, where); err != nil {
				return nil, err
			}
			item, err := element.encode(each.Value(), named(where, key, depth), depth+1, left)
			if err != nil {
				return nil, err
			}
			members[key] = item
		}
		return members, nil
	}
	made.decode = func(plain any, into reflect.Value, gaps bool) bool {
		if plain == nil {
			return true
		}
		members, ok := plain.(map[string]any)
		if !ok {
			return false
		}
		into.Set(reflect.MakeMapWithSize(kind, len(members)))
		for key, item := range members {
			fresh := reflect.New(kind.Elem()).Elem()
			if !element.decode(item, fresh, gaps) {
				return false
			}
			into.SetMapIndex(reflect.ValueOf(key).Convert(kind.Key()), fresh)
		}
		return true
	}
	return nil
}

type field struct {
	name  string
	place int
	codec *codec
}

func (c codecs) fillStruct(made *codec, kind reflect.Type, where string) error {
	list, byName := []field{}, map[string]field{}
	for place := range kind.NumField() {
		declared := kind.Field(place)
		what := where + "." + declared.Name
		name, err := nameOf(declared, what)
		if err != nil {
			return err
		}
		if _, twice := byName[name]; twice {
			return misconfigured("%s has a name that another field has", what)
		}
		element, err := c.of(declared.Type, what)
		if err != nil {
			return err
		}
		byName[name] = field{name, place, element}
		list = append(list, byName[name])
	}
	made.encode = func(value reflect.Value, where string, depth int, left *budget) (any, error) {
		if err := left.open(len(list), where, depth); err != nil {
			return nil, err
		}
		members := make(map[string]any, len(list))
		for _, each := range list {
			if err := left.spend(len(each.name), where); err != nil {
				return nil, err
			}
			item, err := each.codec.encode(value.Field(each.place), named(where, each.name, depth), depth+1, left)
			if err != nil {
				return nil, err
			}
			members[each.name] = item
		}
		return members, nil
	}
	made.decode = func(plain any, into reflect.Value, gaps bool) bool {
		members, ok := plain.(map[string]any)
		if !ok || (!gaps && len(members) != len(list)) {
			return false
		}
		for name, item := range members {
			each, isKnown := byName[name]
			if !isKnown || !each.codec.decode(item, into.Field(each.place), gaps) {
				return false
			}
		}
		return true
	}
	return nil
}

// nameOf gives the one name of a field. What would run and not be hashed, or would be hashed at times only, is refused.
func nameOf(declared reflect.StructField, what string) (string, error) {
	if declared.Anonymous {
		return "", misconfigured("%s is embedded; give it a name", what)
	}
	if !declared.IsExported() {
		return "", misconfigured("%s is not exported, so it would be neither hashed nor kept", what)
	}
	tag, hasTag := declared.Tag.Lookup("json")
	name, options, _ := strings.Cut(tag, ",")
	if tag == "-" {
		return "", misconfigured("%s is not in the JSON, so it would run and not be hashed", what)
	}
	if options != "" {
		return "", misconfigured("%s has the option %q; every field is hashed as it is", what, options)
	}
	if !hasTag || name == "" {
		name = declared.Name
	}
	if !utf8.ValidString(name) {
		return "", misconfigured("%s has a name that is not UTF-8", what)
	}
	return name, nil
}

// Depth of the object of parameters, within the action, and of each of them.
const parametersDepth, parameterDepth = 1, 2

// named names a parameter; what lies deeper is named after it.
func named(where, name string, depth int) string {
	if depth == parametersDepth {
		return "parameter `" + name + "`"
	}
	return where
}

// parametersCodec is the codec of a type of parameters: a struct, or a map with texts for keys.
func parametersCodec(kind reflect.Type) (*codec, error) {
	if kind.Kind() != reflect.Struct && kind.Kind() != reflect.Map {
		return nil, misconfigured("the parameters (%s) are no struct and no map", kind)
	}
	return codecs{}.of(kind, kind.String())
}

// encodeParameters makes plain parameters, a copy of which each part was read once.
func encodeParameters(how *codec, value reflect.Value) (map[string]any, error) {
	plain, err := how.encode(value, "the parameters", parametersDepth, &budget{DefaultMaxBytes})
	if err != nil {
		return nil, err
	}
	members, isObject := plain.(map[string]any)
	if !isObject {
		// A nil map: no parameters.
		members = map[string]any{}
	}
	return members, nil
}
