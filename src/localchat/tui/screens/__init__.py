"""The screens: each one lays widgets out and connects them; none knows how anything is drawn."""
