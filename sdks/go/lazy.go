package aegisagent

import (
	"io"
	"reflect"
	"sync"
)

// What does its work after it was returned: channels, functions, streams and iterators, and what holds one. Its work would be done after
// the outcome was reported.

// nature is what a type says of its values.
type nature struct {
	// isLazy: each of them does its work later.
	isLazy bool
	// isOpen: one can hold a value of any type, to be looked at when there is one.
	isOpen bool
}

// natures keeps what was found, by type.
var natures sync.Map

func natureOf(kind reflect.Type) nature {
	if known, ok := natures.Load(kind); ok {
		return known.(nature)
	}
	var found nature
	found.add(kind, map[reflect.Type]bool{})
	natures.Store(kind, found)
	return found
}

// add looks through all that a holder of the type can reach.
func (n *nature) add(kind reflect.Type, seen map[reflect.Type]bool) {
	// A credential shows itself through a function, and does no work.
	if seen[kind] || kind == reflect.TypeFor[Secret]() {
		return
	}
	seen[kind] = true
	if n.isLazy = n.isLazy || worksLater(kind); n.isLazy {
		return
	}
	switch kind.Kind() {
	case reflect.Interface:
		n.isOpen = true
	case reflect.Pointer, reflect.Slice:
		n.add(kind.Elem(), seen)
	case reflect.Array:
		// One of no length makes a struct incomparable, and holds nothing.
		if kind.Len() > 0 {
			n.add(kind.Elem(), seen)
		}
	case reflect.Map:
		n.add(kind.Key(), seen)
		n.add(kind.Elem(), seen)
	case reflect.Struct:
		for place := range kind.NumField() {
			if each := kind.Field(place); isReached(each) {
				n.add(each.Type, seen)
			} else {
				n.isLazy = n.isLazy || holdsWork(each.Type)
			}
		}
	}
}

func isReached(field reflect.StructField) bool { return field.IsExported() || field.Anonymous }

// holdsWork is for fields that are not exported: what they hold themselves, and not what they point at, which may be anybody's.
func holdsWork(kind reflect.Type) bool {
	switch kind.Kind() {
	case reflect.Array:
		return kind.Len() > 0 && holdsWork(kind.Elem())
	case reflect.Struct:
		if kind == reflect.TypeFor[Secret]() {
			return false
		}
		for place := range kind.NumField() {
			if holdsWork(kind.Field(place).Type) {
				return true
			}
		}
	}
	return worksLater(kind)
}

// worksLater says whether values of a type are themselves such things: by their kind, or by how they are read.
func worksLater(kind reflect.Type) bool {
	if kind.Kind() == reflect.Chan || kind.Kind() == reflect.Func {
		return true
	}
	holder := kind
	if kind.Kind() != reflect.Interface && kind.Kind() != reflect.Pointer {
		holder = reflect.PointerTo(kind)
	}
	if holder.Implements(reflect.TypeFor[io.Reader]()) {
		return true
	}
	// As database/sql, bufio.Scanner, cursors and the streams of RPC have it. Next of a list gives an element, and is none of them; nor is
	// Scan of what is read by database/sql, which takes one value.
	if next, has := holder.MethodByName("Next"); has && saysWhether(next.Type, true) {
		return true
	}
	if receive, has := holder.MethodByName("Recv"); has && saysWhether(receive.Type, true) {
		return true
	}
	scan, has := holder.MethodByName("Scan")
	return has && saysWhether(scan.Type, scan.Type.IsVariadic())
}

// saysWhether says whether a method ends with whether there was something more: a bool or, where that counts, an error.
func saysWhether(method reflect.Type, orError bool) bool {
	count := method.NumOut()
	if count == 0 {
		return false
	}
	last := method.Out(count - 1)
	return last.Kind() == reflect.Bool || (orError && last == reflect.TypeFor[error]())
}

// isLazy says whether a value is, or holds where its holder finds it, what does its work later. It is not read any further: fields that are
// not exported, and all of what is locked while it is used, are their owner's.
func isLazy(result reflect.Value) bool {
	type place struct {
		at   uintptr
		size int
		kind reflect.Type
	}
	seen := map[place]bool{}
	isNew := func(value reflect.Value, size int) bool {
		here := place{value.Pointer(), size, value.Type()}
		isKnown := seen[here]
		seen[here] = true
		return !isKnown
	}
	// A list and no recursion, for what is returned may be as deep as memory.
	for todo := []reflect.Value{result}; len(todo) > 0; {
		value := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if !value.IsValid() {
			continue
		}
		switch nature := natureOf(value.Type()); {
		case nature.isLazy:
			return true
		case !nature.isOpen:
			continue
		}
		switch value.Kind() {
		case reflect.Interface:
			todo = append(todo, value.Elem())
		case reflect.Pointer:
			if !value.IsNil() && isNew(value, 1) {
				todo = append(todo, value.Elem())
			}
		case reflect.Slice:
			if !isNew(value, value.Len()) {
				continue
			}
			fallthrough
		case reflect.Array:
			for index := range value.Len() {
				todo = append(todo, value.Index(index))
			}
		case reflect.Map:
			if !isNew(value, 1) {
				continue
			}
			for each := value.MapRange(); each.Next(); {
				todo = append(todo, each.Key(), each.Value())
			}
		case reflect.Struct:
			if isLocked(value.Type()) {
				continue
			}
			for index := range value.NumField() {
				if isReached(value.Type().Field(index)) {
					todo = append(todo, value.Field(index))
				}
			}
		}
	}
	return false
}

// isLocked says whether a struct is used by several at once, each under its lock.
func isLocked(kind reflect.Type) bool {
	for place := range kind.NumField() {
		if reflect.PointerTo(kind.Field(place).Type).Implements(reflect.TypeFor[sync.Locker]()) {
			return true
		}
	}
	return false
}
